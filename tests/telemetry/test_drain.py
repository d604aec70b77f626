"""Processes that only spool, and one beside them that stores and observes what they wrote."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from app.database import Database
from telemetry import Drain
from telemetry.spool import EXECUTIONS, STEPS
from tests.conftest import ROOT
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


@pytest.fixture
def drain(database: Database, tmp_path: Path) -> Iterator[Drain]:
    made = Drain(tmp_path / "spool", database.sink_connection, registry=CollectorRegistry(), drain_interval=3600)
    yield made
    made.shutdown()


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
    assert executions(drain) == {"success": None, "failure": None, "timeout": None}
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
    pipeline = ("errors", "rows_rejected", "spool_bytes", "spool_oldest_age_seconds", "sink_rows_stored")
    assert {f"spanledger_{name}" for name in pipeline} - names == set()
    of_a_door = ("rows_dropped", "open_spans", "tracer_provider_info")
    assert {f"spanledger_{name}" for name in of_a_door} & names == set()


def test_what_cannot_be_stored_yet_waits_and_is_not_observed(tmp_path: Path) -> None:
    def away() -> psycopg.Connection[object]:
        raise psycopg.OperationalError("away")

    job(tmp_path / "spool", "")
    drain = Drain(tmp_path / "spool", away, registry=CollectorRegistry(), drain_interval=3600)
    assert not drain.sink.drain()
    assert executions(drain) == {"success": None, "failure": None, "timeout": None}
    assert drain.registry.get_sample_value("spanledger_spool_segments") == 1
    assert not drain.shutdown(1)
