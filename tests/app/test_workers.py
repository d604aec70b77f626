"""`spanledger run --workers N`: several processes that serve, one that stores and has the metrics of all."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from app.database import Database
from telemetry.spool import EXECUTIONS
from tests.app.service import ROOT, SEED, Service
from tests.end_to_end.waiting import eventually
from tests.telemetry.stored import rows

WORKERS = ("-m", "app", "run", "--workers", "2")
OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}


def pids(service: Service) -> list[int]:
    """Of its workers."""
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]


def counted(service: Service) -> dict[str, float]:
    """Requests by status, over all agents, as any worker says."""
    text = httpx.get(f"{service.url}/metrics", headers=OPENMETRICS, timeout=10).text
    found: dict[str, float] = {}
    families = list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]  # likewise
    assert len({family.name for family in families}) == len(families)
    for family in families:
        for sample in family.samples:
            if sample.name == "spanledger_requests_total":
                found[sample.labels["status"]] = found.get(sample.labels["status"], 0) + sample.value
    return found


def ask(service: Service, number: int) -> None:
    """On a connection each, so that any worker may take it; one that dies meanwhile takes it along."""
    for _ in range(number):
        with suppress(httpx.TransportError, IndexError):
            service.ask()


def statuses(database: Database) -> dict[str, int]:
    """Root executions by status."""
    found: dict[str, int] = {}
    for row in rows(database, EXECUTIONS):
        if row["is_root"]:
            found[row["status"]] = found.get(row["status"], 0) + 1
    return found


def url_of(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


def replaced(service: Service, victim: int) -> bool:
    return victim not in pids(service) and len(pids(service)) == 2


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_any_worker_tells_the_sum_of_all_the_dead_included(database: Database, data_dir: Path) -> None:
    with Service(data_dir, *WORKERS, DATABASE_URL=url_of(database), LOG_LEVEL="error") as service:
        service.ready()
        eventually(lambda: len(pids(service)) == 2)
        eventually(lambda: counted(service).get("crashed") == 0)  # its agents are known before their first run
        ask(service, 20)
        eventually(lambda: counted(service)["success"] == 20)
        before = pids(service)
        for victim in before:
            os.kill(victim, signal.SIGKILL)
            ask(service, 10)
            eventually(functools.partial(replaced, service, victim))
        assert set(before) & set(pids(service)) == set()
        eventually(lambda: sum(statuses(database).values()) == sum(counted(service).values()))
        found = counted(service)
        assert {status: number for status, number in found.items() if number} == statuses(database)
        assert found["success"] > 20
        text = httpx.get(f"{service.url}/metrics", headers=OPENMETRICS, timeout=10).text
        assert ' # {span_id="' in text
        code, _, err = service.stop(signal.SIGTERM)
    assert (code, err) == (-signal.SIGTERM, "")
    homes = [path for path in (data_dir / "spool").iterdir() if path.is_dir() and list(path.glob("*.v1.*"))]
    assert homes == []


def test_workers_are_replaced_one_after_the_other(database: Database, data_dir: Path) -> None:
    with Service(data_dir, *WORKERS, DATABASE_URL=url_of(database), LOG_LEVEL="error") as service:
        service.ready()
        eventually(lambda: len(pids(service)) == 2)
        ask(service, 5)
        before = pids(service)
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(pids(service)) == 2 and not set(before) & set(pids(service)))
        ask(service, 5)
        eventually(lambda: counted(service)["success"] == 10)
        assert statuses(database) == {"success": 10}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_no_worker_outlives_its_supervisor(database: Database, data_dir: Path, number: signal.Signals) -> None:
    with Service(data_dir, *WORKERS, DATABASE_URL=url_of(database), LOG_LEVEL="error") as service:
        service.ready()
        eventually(lambda: len(pids(service)) == 2)
        service.ask()
        workers = pids(service)
        service.process.send_signal(number)
        service.process.wait(40)
        eventually(lambda: not any(map(alive, workers)))
    with Service(data_dir, *WORKERS, DATABASE_URL=url_of(database), LOG_LEVEL="error") as service:
        service.ready()
        eventually(lambda: statuses(database) == {"success": 1})


def test_two_instances_on_one_volume_are_two(database: Database, data_dir: Path) -> None:
    """Each has a directory of its own there: nobody counts, or stores, the other's."""
    with (
        Service(data_dir / "one", DATABASE_URL=url_of(database), LOG_LEVEL="error") as one,
        Service(data_dir / "two", *WORKERS, DATABASE_URL=url_of(database), LOG_LEVEL="error") as two,
    ):
        one.ready().ask()
        two.ready()
        ask(two, 3)
        eventually(lambda: (counted(one)["success"], counted(two).get("success")) == (1, 3))
        eventually(lambda: statuses(database) == {"success": 4})


def test_embedded_postgres_belongs_to_the_supervisor(data_dir: Path) -> None:
    with Service(data_dir, *WORKERS, LOG_LEVEL="error") as service:
        service.ready().ask(SEED)
        eventually(lambda: len(service.executions()) == 2)
        assert service.stop(signal.SIGTERM)[0] == -signal.SIGTERM
        assert service.database_pid() is None


def test_a_worker_whose_supervisor_was_killed_while_it_started_ends_in_order(
    database: Database, data_dir: Path
) -> None:
    """Nobody reads that it serves, and it must not keep the address."""
    data_dir.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "worker", str(listener.fileno()), str(data_dir / "nobody")],
            cwd=data_dir.parent,
            env={**os.environ, "SPANLEDGER_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT), "LOG_LEVEL": "error"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(listener.fileno(),),
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            process.stdin.write(f"{url_of(database)}\n".encode())
            process.stdin.flush()
            assert httpx.get(f"http://127.0.0.1:{listener.getsockname()[1]}/readyz", timeout=60).status_code == 200
            process.stdin.close()
            assert (process.wait(30), process.stderr.read()) == (-signal.SIGTERM, b"")
