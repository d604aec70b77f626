"""The ledger adds up, whatever becomes of an execution, and says so when it does not."""

from __future__ import annotations

import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.database import Database
from telemetry import Ledger
from telemetry.execution import Execution
from telemetry.ledger import Door, Store
from telemetry.spool import Spool, SpoolError
from tests.telemetry.conftest import Observe
from tests.telemetry.observed import Observed
from tests.telemetry.test_crashed import NESTED, killed, process
from tests.telemetry.test_drain import draining

EMPTY = Store(0, 0, 0, 0, 0)


def unexplained(ledger: Ledger) -> tuple[int, int]:
    return ledger.door.unexplained(), ledger.store.unexplained()


def away() -> psycopg.Connection[Any]:
    raise psycopg.OperationalError("away")


def test_nothing_is_everything_explained(observed: Observed) -> None:
    assert observed.telemetry.ledger() == Ledger(Door(0, 0, 0, 0, 0, 0), EMPTY)


def test_an_execution_from_its_start_to_its_row(observe: Observe, database: Database) -> None:
    observed = observe(connect=database.sink_connection, drain_interval=3600.0)
    with observed.monitor.execution("a") as run:
        assert observed.telemetry.ledger() == Ledger(Door(1, 1, 0, 0, 0, 0), EMPTY)
        run.record_usage(provider="p", model="m", input_tokens=1)
    assert observed.telemetry.ledger() == Ledger(Door(1, 0, 1, 1, 0, 0), EMPTY)
    observed.telemetry.spool.seal()
    observed.telemetry.spool.ready()
    assert observed.telemetry.ledger() == Ledger(Door(1, 0, 1, 1, 0, 0), Store(2, 2, 0, 0, 0))
    assert observed.telemetry.flush()
    assert observed.telemetry.ledger() == Ledger(Door(1, 0, 1, 1, 0, 0), Store(2, 0, 2, 0, 0))
    assert observed.pipeline("spanledger_ledger_started_total") == 1
    assert observed.pipeline("spanledger_ledger_sealed_total") == 2


def test_what_is_dropped_and_set_aside(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SpoolError("spool_full", "no room")

    def broken(*_: object) -> bytes:
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "append", full)
        with observed.monitor.execution("dropped"):
            pass
    with monkeypatch.context() as patch:
        patch.setattr(Execution, "line", broken)
        with observed.monitor.execution("broken"):
            pass
    old = time.time_ns() - int(timedelta(days=99).total_seconds()) * 10**9
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "old"}
    observed.tracer.start_span("old", attributes=agent, start_time=old).end(old + 1)
    assert observed.telemetry.ledger() == Ledger(Door(3, 0, 3, 0, 2, 1), EMPTY)
    assert unexplained(observed.telemetry.ledger()) == (0, 0)


def test_an_error_before_the_row_is_made(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr("telemetry.processor.Identity.from_span", broken)
        with observed.monitor.execution("broken"):
            pass
    assert observed.telemetry.ledger().door == Door(1, 0, 1, 0, 1, 0)


def test_spans_that_never_started_here_or_became_agents_later(observed: Observed) -> None:
    with observed.tracer.start_as_current_span("late agent") as span:
        span.set_attribute("gen_ai.operation.name", "invoke_agent")
    with observed.tracer.start_as_current_span("call", attributes={"gen_ai.operation.name": "chat"}):
        pass
    with observed.tracer.start_as_current_span("plain"):
        pass
    assert observed.telemetry.ledger().door == Door(2, 0, 2, 2, 0, 0)


def test_what_others_left_and_what_was_stored_before(observe: Observe, database: Database, tmp_path: Path) -> None:
    killed(tmp_path / "spool", NESTED)
    (left,) = (tmp_path / "spool").iterdir()
    shutil.copytree(left, tmp_path / "copy")
    observed = observe(connect=database.sink_connection, drain_interval=3600.0)
    assert observed.telemetry.flush()
    # Three model calls, one agent that ended, two that crashed.
    assert observed.telemetry.ledger() == Ledger(Door(0, 0, 0, 0, 0, 0), Store(6, 0, 6, 0, 0))
    (tmp_path / "copy").rename(tmp_path / "spool" / "1-copy")
    assert observed.telemetry.flush()
    assert observed.telemetry.ledger().store == Store(12, 0, 6, 6, 0)


def test_rows_that_vanish_are_unexplained(observe: Observe) -> None:
    observed = observe(connect=away, drain_interval=3600.0)
    with observed.monitor.execution("a"):
        pass
    assert not observed.telemetry.flush()
    assert unexplained(observed.telemetry.ledger()) == (0, 0)
    for segment in observed.telemetry.spool.ready():
        segment.remove()
    assert unexplained(observed.telemetry.ledger()) == (0, 1)
    assert observed.pipeline("spanledger_ledger_unexplained", part="store") == 1


def test_a_drain_adds_up_the_processes(database: Database, tmp_path: Path) -> None:
    script = """
    with monitor.execution("ended"):
        pass
    with monitor.execution("open"):
        time.sleep(2.5)  # it says once a second what it has counted
        print("open", flush=True)
        time.sleep(60)
    """
    with draining(tmp_path, database.sink_connection) as drain:
        with process(tmp_path / "spool", script) as started:
            assert started.stdout is not None
            assert started.stdout.readline() == "open\n"
            assert drain.sink.drain()
            assert drain.ledger() == Ledger(Door(2, 1, 1, 1, 0, 0), Store(1, 0, 1, 0, 0))
        assert drain.sink.drain()
        assert drain.sink.drain()
        assert drain.ledger() == Ledger(Door(2, 0, 2, 2, 0, 0), Store(2, 0, 2, 0, 0))
