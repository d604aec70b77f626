"""The service as a process: how it ends, what is left of it, what it finds again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.service import ROOT, SEED, UVICORN, Service, free_port
from tests.conftest import reachable_directory
from tests.end_to_end.processes import belonging_to, kill_all, postmasters
from tests.end_to_end.waiting import eventually
from tests.openai_server import Fault, OpenAIServer

QUESTION = {**SEED, "type": "chat", "options": {"count": 1}}
DEADLINE = 25.0  # seconds: 5 of grace, 5 to cancel, 5 to drain, 15 for the database


async def complete(url: str, request_id: str) -> str | None:
    """One request; its id once its last event has been seen, else None."""
    try:
        async with (
            httpx.AsyncClient(timeout=60, headers={"X-Request-ID": request_id}) as client,
            client.stream("POST", f"{url}/api/ai/process-stream", json=SEED) as answer,
        ):
            async for line in answer.aiter_lines():
                if line == "event: result":
                    return request_id
    except httpx.HTTPError:
        pass
    return None


def executions(service: Service) -> list[dict[str, Any]]:
    """All of them, page by page."""
    token = (service.data_dir / "admin-token").read_text().strip()
    rows: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = httpx.get(
            f"{service.url}/api/admin/executions",
            params={"limit": "500", **cursor},
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        ).raise_for_status()
        page = answer.json()
        rows += page["data"]
        if page["next_cursor"] is None:
            return rows
        cursor = {"cursor": page["next_cursor"]}


def waiting(data_dir: Path) -> bool:
    """Whether there are rows in the spool that were not even sealed."""
    return any(path.stat().st_size for path in data_dir.glob("spool/*/*.executions.open"))


def by_request(service: Service) -> Counter[str]:
    """Stored executions of each request: two of a whole one, the orchestrator and its agent."""
    return Counter(row["request_id"] for row in executions(service))


@pytest.mark.anyio
async def test_kill_9_of_everything_loses_nothing_a_client_saw_end(data_dir: Path) -> None:
    """Clients keep asking while the service, its database server and all its children die at once."""
    with Service(data_dir) as service:
        await asyncio.to_thread(service.ready)
        seen: list[str] = []

        async def ask_on(client: int) -> None:
            for number in range(10_000):
                if (done := await complete(service.url, f"r-{client}-{number}")) is None:
                    return
                seen.append(done)

        clients = [asyncio.create_task(ask_on(client)) for client in range(4)]
        while len(seen) < 40 or not waiting(data_dir):  # what they saw end last is in the spool only
            await asyncio.sleep(0.005)
        killed = kill_all(data_dir)
        await asyncio.gather(*clients)
        assert len(killed) >= 5  # the service, the postmaster and at least three of its children
        await asyncio.to_thread(service.end)

    with Service(data_dir) as service:
        await asyncio.to_thread(service.ready)
        await asyncio.to_thread(eventually, lambda: set(seen) <= set(by_request(service)))
        stored = await asyncio.to_thread(by_request, service)
        assert {request: stored[request] for request in seen} == dict.fromkeys(seen, 2)
        assert max(stored.values()) == 2  # nothing came twice
        assert await asyncio.to_thread(service.stop) is not None
    assert belonging_to(data_dir) == {}


@pytest.mark.anyio
async def test_kill_9_of_the_service_alone(data_dir: Path) -> None:
    """Its database server stays behind; the next service takes it over, with the rows left in the spool."""
    with Service(data_dir) as service:
        await asyncio.to_thread(service.ready)
        seen = [r for r in await asyncio.gather(*(complete(service.url, f"r-{n}") for n in range(20))) if r]
        service.process.kill()
        await asyncio.to_thread(service.end)
        (left,) = postmasters(data_dir)
        assert service.database_pid() == left
        with Service(data_dir) as next_service:
            await asyncio.to_thread(next_service.ready)
            assert postmasters(data_dir) == [left]
            await asyncio.to_thread(eventually, lambda: set(seen) <= set(by_request(next_service)))
            assert by_request(next_service) == dict.fromkeys(seen, 2)
            assert len(seen) == 20
            code, _, err = await asyncio.to_thread(next_service.stop)
            assert (code, belonging_to(data_dir)) == (130, {}), err


def test_ctrl_c_during_open_streams(data_dir: Path) -> None:
    """It drains within the deadline and leaves nothing; the next start has the whole and the cut-off runs."""
    with OpenAIServer() as model, Service(data_dir, OPENAI_BASE_URL=model.base_url) as service:
        service.ready()
        service.ask(QUESTION)
        model.text, model.delay_seconds = "word " * 200, 0.5
        model.fail(Fault.SLOW, 3)
        with httpx.Client(timeout=60) as client:
            streams = []
            for number in range(3):
                request = client.build_request(
                    "POST",
                    f"{service.url}/api/ai/process-stream",
                    json=QUESTION,
                    headers={"X-Request-ID": f"cut-{number}"},
                )
                answer = client.send(request, stream=True)
                lines = answer.iter_lines()
                while next(lines) != "event: partial":
                    pass
                streams.append(answer)
            began = time.monotonic()
            code, _, err = service.stop()
            took = time.monotonic() - began
            for answer in streams:
                answer.close()
        assert (code, took < DEADLINE, belonging_to(data_dir)) == (130, True, {}), err
        assert "Traceback" not in err
        assert [*data_dir.glob("spool/*/*.executions*")] == []  # everything was drained

        with Service(data_dir, OPENAI_BASE_URL=model.base_url) as again:
            again.ready()
            rows = Counter((row["agent_name"], row["status"]) for row in executions(again))
            assert rows == {
                ("main_orchestrator", "success"): 1,
                ("chat", "success"): 1,
                ("main_orchestrator", "cancelled"): 3,
                ("chat", "cancelled"): 3,
            }
            assert {f"cut-{number}" for number in range(3)} <= set(by_request(again))
            again.stop(signal.SIGTERM)
            assert belonging_to(data_dir) == {}


def test_a_second_ctrl_c_leaves_nothing_behind_either(data_dir: Path) -> None:
    """Whoever is impatient presses twice."""
    with OpenAIServer() as model, Service(data_dir, OPENAI_BASE_URL=model.base_url) as service:
        service.ready()
        model.text, model.delay_seconds = "word " * 200, 0.5
        model.fail(Fault.SLOW)
        with httpx.stream("POST", f"{service.url}/api/ai/process-stream", json=QUESTION, timeout=60) as answer:
            lines = answer.iter_lines()
            while next(lines) != "event: partial":
                pass
            service.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            service.stop()
        assert belonging_to(data_dir) == {}
        with Service(data_dir) as again:
            again.ready()
            assert {row["status"] for row in executions(again)} == {"cancelled"}


@pytest.mark.long
def test_reload_leaves_one_of_each(data_dir: Path, tmp_path: Path) -> None:
    """`uvicorn --reload`, three changes in a row: one service, one server, one owner of the spool, nothing lost."""
    for package in ("app", "telemetry", "migrations"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with Service(data_dir, *UVICORN, "--reload", cwd=tmp_path) as service:
        service.ready()
        traces = {service.ask()["trace_id"]}
        for _ in range(3):
            before = (data_dir / "lock").read_text()
            with (tmp_path / "app/problems.py").open("a") as source:
                source.write("# changed\n")
            eventually(partial(_another, data_dir / "lock", before), 60)
            service.ready()
            traces.add(service.ask()["trace_id"])
            assert len(postmasters(data_dir)) == 1
            eventually(lambda: len([*data_dir.glob("spool/*/lock")]) == 1)  # the one before was adopted
        eventually(lambda: {row["trace_id"] for row in executions(service)} == traces)
        service.stop()
        eventually(lambda: belonging_to(data_dir) == {}, 10)


def test_as_an_ordinary_user(ordinary_user: dict[str, Any]) -> None:
    """Home and data belong to somebody who is not root, and so does every process."""
    if os.geteuid() != 0:
        pytest.skip("every other test here shows it already")
    user = dict(ordinary_user)
    python, env = user.pop("python"), user.pop("env")
    with reachable_directory() as home:
        os.chown(home, user["user"], user["group"])
        with OrdinaryService(home, python, env, user) as service:
            service.ready()
            result = service.ask()
            assert {_owner(pid) for pid in belonging_to(service.data_dir)} == {user["user"]}
            eventually(lambda: {row["trace_id"] for row in executions(service)} == {result["trace_id"]})
            code, _, err = service.stop()
            assert (code, belonging_to(service.data_dir)) == (130, {}), err
        assert service.data_dir.is_relative_to(home)
        assert [path for path in home.rglob("*") if path.lstat().st_uid != user["user"]] == []
        modes = {name: oct((service.data_dir / name).stat().st_mode & 0o777) for name in ("admin-token", "spool")}
        assert modes == {"admin-token": "0o600", "spool": "0o700"}


class OrdinaryService(Service):
    """Without SPANLEDGER_DATA_DIR: the data goes where an ordinary user's data goes."""

    def __init__(self, home: Path, python: str, env: dict[str, str], user: dict[str, Any]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data_dir = home / ".local/share/spanledger"
        self.process = subprocess.Popen(
            [python, "-m", "app", "run"],
            cwd=home,
            env={"PATH": os.defpath, "HOME": str(home), "PORT": str(self.port), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **user,
        )


def _another(lock: Path, owner: str) -> bool:
    return lock.read_text() not in ("", owner)


def _owner(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid
