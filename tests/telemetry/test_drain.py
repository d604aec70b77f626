"""Processes that only spool, and one beside them that stores and observes what they wrote."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from app.database import Database
from telemetry import Drain
from telemetry.segment import Segment
from telemetry.spool import EXECUTIONS, STEPS
from tests.conftest import ROOT
from tests.end_to_end.waiting import eventually
from tests.telemetry.stored import rows

LABELS = {"service_name": "cron", "deployment_environment_name": "", "gen_ai_agent_name": "report"}


def job(spool_dir: Path, last_words: str) -> subprocess.CompletedProcess[str]:
    """A short process that runs an agent twice, once in vain, and ends without any goodbye of ours."""
    program = f"""
        import os, signal, sys
        from contextlib import suppress
        from pathlib import Path
        from opentelemetry.sdk.resources import Resource
        from telemetry import AgentMonitor, configure

        configure(spool_dir=Path(sys.argv[1]), resource=Resource({{"service.name": "cron"}}))
        with AgentMonitor().execution("report", input="a month") as run:
            with run.inference(provider="p", model="m") as call:
                call.usage(input_tokens=900, output_tokens=100)
        with suppress(ValueError), AgentMonitor().execution("report"):
            raise ValueError("no month")
        assert "psycopg" not in sys.modules
        {last_words}
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(spool_dir)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def draining(
    directory: Path, connect: Callable[[], psycopg.Connection[Any]], interval: float = 3600
) -> Iterator[Drain]:
    """A drain with a registry of its own; it stores what it can at the end."""
    made = Drain(directory / "spool", connect, registry=CollectorRegistry(), drain_interval=interval)
    try:
        yield made
    finally:
        made.shutdown(1)


@pytest.fixture
def drain(database: Database, tmp_path: Path) -> Iterator[Drain]:
    with draining(tmp_path, database.sink_connection) as made:
        yield made


def executions(drain: Drain) -> dict[str, float | None]:
    return {
        status: drain.registry.get_sample_value("spanledger_executions_total", LABELS | {"status": status})
        for status in ("success", "failure", "timeout")
    }


@pytest.mark.parametrize(
    ("last_words", "code"),
    [("sys.exit(0)", 0), ("os._exit(0)", 0), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)],
    ids=["exit", "_exit", "SIGKILL"],
)
def test_what_a_job_spooled_is_stored_and_observed(
    drain: Drain, database: Database, tmp_path: Path, last_words: str, code: int
) -> None:
    done = job(tmp_path / "spool", last_words)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert set(executions(drain).values()) <= {None, 0}
    assert drain.sink.drain()
    stored = rows(database, EXECUTIONS)
    assert sorted((row["agent_name"], row["status"], row["tokens_used"]) for row in stored) == [
        ("report", "failure", 0),
        ("report", "success", 1000),
    ]
    assert len(rows(database, STEPS)) == 1
    assert executions(drain) == {"success": 1, "failure": 1, "timeout": 0}
    tokens = LABELS | {"gen_ai_request_model": "m", "gen_ai_token_type": "input"}
    assert drain.registry.get_sample_value("spanledger_tokens_total", tokens) == 900
    assert drain.sink.drain()  # a look later the empty directory of the dead process goes
    assert [path.name for path in (tmp_path / "spool").iterdir()] == [drain.spool.writer.name]


def test_many_jobs_add_up(drain: Drain, database: Database, tmp_path: Path) -> None:
    for _ in range(3):
        job(tmp_path / "spool", "")
        assert drain.sink.drain()
    assert executions(drain) == {"success": 3, "failure": 3, "timeout": 0}
    assert len(rows(database, EXECUTIONS)) == 6


def test_the_pipelines_own_numbers_are_there(drain: Drain) -> None:
    names = {family.name for family in drain.registry.collect() if family.name.startswith("spanledger_")}
    pipeline = ("errors", "rows_dropped", "rows_rejected", "spool_bytes", "sink_rows_stored", "open_spans")
    assert {f"spanledger_{name}" for name in pipeline} - names == set()
    assert "spanledger_tracer_provider_info" not in names


def away() -> psycopg.Connection[Any]:
    raise psycopg.OperationalError("away")


def test_what_cannot_be_stored_yet_is_counted_once(tmp_path: Path, database: Database) -> None:
    """Also by a drain that comes after, which stores it."""
    job(tmp_path / "spool", "")
    with draining(tmp_path, away) as first:
        for _ in range(2):
            assert not first.sink.drain()
        assert executions(first) == {"success": 1, "failure": 1, "timeout": 0}
        waiting = first.registry.get_sample_value("spanledger_spool_segments")
        assert waiting == len(list((tmp_path / "spool").glob("*/*.seen")))
        assert waiting > 0
    with draining(tmp_path, database.sink_connection) as second:
        assert second.sink.drain()
        assert len(rows(database, EXECUTIONS)) == 2
        assert executions(second) == {"success": None, "failure": None, "timeout": None}
        assert list((tmp_path / "spool").glob("*/*.seen")) == []


def test_it_counts_without_waiting_for_postgres(tmp_path: Path) -> None:
    with draining(tmp_path, away, 0.05) as drain:
        job(tmp_path / "spool", "")
        eventually(lambda: executions(drain) == {"success": 1, "failure": 1, "timeout": 0})


def test_a_disk_too_full_for_a_note_holds_up_nothing(
    drain: Drain, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(segment: Segment) -> bool:
        raise OSError(28, "No space left on device")

    job(tmp_path / "spool", "")
    monkeypatch.setattr(Segment, "mark_seen", refuse)
    for _ in range(2):
        drain.ready()
    assert drain.sink.drain()
    assert len(rows(database, EXECUTIONS)) == 2
    assert executions(drain) == {"success": 1, "failure": 1, "timeout": 0}


LOSING = """
        from telemetry import monitor
        import time
        monitor._runtime.guard.counts["on_end"] += 2
        monitor._runtime.spool.queued_lines += 3
        processor = monitor._runtime.tracer.span_processor._span_processors[-1]
        processor.dropped["spool_full"] += 5
        span = monitor._runtime.tracer.start_span("open")
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_went_wrong_in_a_process_is_counted_after_its_death(drain: Drain, tmp_path: Path) -> None:
    done = job(tmp_path / "spool", LOSING)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    value = drain.registry.get_sample_value
    for _ in range(2):  # before it is adopted, and after
        assert value("spanledger_rows_dropped_total", {"reason": "spool_full"}) == 5
        assert value("spanledger_errors_total", {"where": "on_end"}) == 2
        assert value("spanledger_spool_queued_lines_total") == 3
        assert drain.sink.drain()
    assert value("spanledger_open_spans") == 0
