"""The sink under fire: servers that stop, crash, fail over, lock and time out. Every row is there once, afterwards."""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from app import postmaster
from app.database import Database
from app.embedded import EmbeddedPostgres
from app.rollup import differences
from telemetry import loader
from telemetry.deadline import deadline
from telemetry.execution import Execution, Step
from telemetry.sink import PostgresSink
from telemetry.spool import EXECUTIONS, STEPS
from tests.conftest import Server, cluster15, postgres15, stopped_with_us
from tests.telemetry.stored import EXECUTION_ROW, STEP_ROW, execution, rows, sink, step
from tests.telemetry.test_rollup import EVER

on_both = pytest.mark.parametrize("server", ["embedded", "postgres15"], indirect=True)
AWAY = "Postgres is not taking rows, they wait in the spool: "
A2 = "00000000000000a2"


def assert_stored_once(database: Database) -> None:
    assert (rows(database, EXECUTIONS), rows(database, STEPS)) == ([EXECUTION_ROW], [STEP_ROW])
    assert differences(database, EVER) == []


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "spanledger"]


# The server


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_the_server_restarts(data_dir: Path, tmp_path: Path, end: str) -> None:
    postgres = EmbeddedPostgres(data_dir)
    database = Database(postgres.start())
    running = postmaster.running(postgres.pgdata)
    assert running is not None
    try:
        database.migrate()
        with stopped_with_us(running.pid, data_dir), sink(tmp_path, database.sink_connection) as drained:
            drained.put(execution())
            assert drained.drain()
            if end == "stopped":
                postgres.stop()
            else:
                os.kill(running.pid, signal.SIGKILL)
            drained.put(step())
            assert [drained.drain(0.5), drained.drain(0.5)] == [False, False]
            postgres.start()
            database.dispose()
            assert drained.drain()
            assert_stored_once(database)
            assert (drained.stored, drained.guard.counts) == ({EXECUTIONS: 1, STEPS: 1}, {})
    finally:
        database.dispose()
        postgres.stop()


@contextmanager
def standby_of(primary: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of a standby of this Postgres 15, and what makes it the primary."""
    host = str(make_url(primary).query["host"])
    backup = ("pg_basebackup", "-h", host, "-U", "postgres", "-R", "-c", "fast", "--no-sync")
    with cluster15(*backup) as (url, run):
        yield url, lambda: run("pg_ctl", "promote", "-w")


def test_a_failover_to_a_standby_that_is_promoted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with postgres15() as url, standby_of_migrated(url) as (primary, standby, promote):
        places = [primary]
        with sink(tmp_path, lambda: places[-1].sink_connection()) as drained:
            drained.put(execution())
            assert drained.drain()
            places.append(standby)
            drained._hang_up()
            drained.put(step())
            assert [drained.drain(), drained.drain()] == [False, False]
            assert (drained.failures, drained.guard.counts) == (2, {})
            assert messages(caplog) == [f"{AWAY}cannot execute COPY during recovery"]
            promote()
            assert drained.drain()
            assert_stored_once(standby)


@contextmanager
def standby_of_migrated(url: str) -> Iterator[tuple[Database, Database, Callable[[], None]]]:
    primary = Database(url)
    primary.migrate()
    with standby_of(url) as (standby_url, promote):
        standby = Database(standby_url)
        try:
            yield primary, standby, promote
        finally:
            primary.dispose()
            standby.dispose()


# The session


def terminate(database: Database, pid: int) -> None:
    with database.sink_connection() as connection:
        connection.execute("RESET ROLE")
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


@on_both
@pytest.mark.parametrize("path", ["straight", "staged"])
@pytest.mark.parametrize("cut", [EXECUTIONS, STEPS])
def test_a_backend_that_is_terminated_in_the_middle_of_copy(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, cut: str
) -> None:
    @contextmanager
    def copying(connection: psycopg.Connection[Any], target: Any, table: str) -> Iterator[psycopg.Copy]:
        with original(connection, target, table) as copy:
            if table == cut:
                copy.write(b"f\thalf a li")
                terminate(database, connection.info.backend_pid)
            yield copy

    original = loader._copying
    with sink(tmp_path, database.sink_connection) as drained:
        if path == "staged":
            drained.put(execution(), step())
            assert drained.drain()
        drained.put(execution(), step())
        with monkeypatch.context() as patch:
            patch.setattr(loader, "_copying", copying)
            assert not drained.drain()
        assert (drained.failures, drained.guard.counts) == (1, {})
        assert drained.drain()
        assert_stored_once(database)


@on_both
@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
@pytest.mark.parametrize("table", ["agent_executions", "execution_steps", "execution_rollup"])
def test_a_table_that_somebody_locks(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture, setting: str, table: str
) -> None:
    opened: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        connection = database.sink_connection()
        connection.execute(f"SET {setting} = '50ms'".encode())
        connection.commit()
        opened.append(connection)
        return connection

    with sink(tmp_path, connect) as drained:
        drained.put(execution(), step())
        with database.sink_connection() as other:
            other.execute("RESET ROLE")
            other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
            assert [drained.drain(), drained.drain()] == [False, False]
            other.rollback()
        assert messages(caplog) == [f"{AWAY}canceling statement due to {setting.replace('_', ' ')}"]
        assert drained.drain()
        assert_stored_once(database)
        assert (drained.failures, drained.stored) == (2, {EXECUTIONS: 1, STEPS: 1})
        assert [connection.closed for connection in opened] == [True, True, False]  # after a failover it is elsewhere


def test_the_service_gives_its_sink_ten_seconds_for_a_lock(database: Database) -> None:
    with database.sink_connection() as connection:
        assert connection.execute("SELECT current_setting('lock_timeout')").fetchone() == ("10s",)


@on_both
def test_a_server_that_says_nothing_is_left_after_a_while(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an answer nor an end, as behind a proxy that has lost its other side."""

    def connect() -> psycopg.Connection[Any]:
        connection = database.sink_connection()
        connection.execute("SET lock_timeout = 0")
        connection.commit()
        return connection

    monkeypatch.setattr("telemetry.sink.PATIENCE_SECONDS", 0.2)
    with sink(tmp_path, connect) as drained:
        drained.put(execution(), step())
        with database.sink_connection() as other:
            other.execute("RESET ROLE")
            other.execute("LOCK TABLE execution_steps IN ACCESS EXCLUSIVE MODE")
            began = time.monotonic()
            assert not drained.drain()
            assert 0.2 <= time.monotonic() - began < 5
            other.rollback()
        assert [message.startswith(AWAY) for message in messages(caplog)] == [True]
        assert (drained.failures, drained.guard.counts) == (1, {})
        assert drained.drain()
        assert_stored_once(database)


def test_a_large_batch_is_given_a_second_more_for_every_16_kib(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def noted(fileno: int, seconds: float) -> AbstractContextManager[None]:
        given.append(seconds)
        return deadline(fileno, seconds)

    monkeypatch.setattr("telemetry.sink.deadline", noted)
    put: list[Execution | Step] = [execution(input=b'"%s"' % (b"x" * 40_000)), step(), execution(A2)]
    with sink(tmp_path, database.sink_connection) as drained:
        for row in put:
            drained.put(row)
            drained.spool.seal()
        assert drained.drain()
        assert drained.stored == {EXECUTIONS: 2, STEPS: 1}
    assert given == [60 + sum(len(row.line()) for row in put) / (16 << 10)]


# The schema


@on_both
def test_a_schema_that_is_not_there_yet(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with server.database("template1") as database, sink(tmp_path, database.sink_connection) as drained:
        drained.put(execution(), step())
        assert [drained.drain() for _ in range(3)] == [False] * 3
        assert (drained.failures, drained.guard.counts) == (3, {})
        assert messages(caplog) == [
            "rows wait in the spool until `spanledger migrate` has made the schema: "
            'relation "agent_executions" does not exist'
        ]
        database.migrate()
        assert drained.drain()
        assert_stored_once(database)
        drained.stop()


def test_the_same_is_said_every_twenty_seconds_and_something_else_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    said = itertools.chain("aaa", itertools.repeat("b"))

    def connect() -> psycopg.Connection[Any]:
        raise psycopg.OperationalError(next(said))

    with sink(tmp_path, connect) as drained:
        drained.put(execution())
        for later in (0.0, 19.9, 0.1, 0.1):
            now[0] += later
            assert not drained.drain()
    assert messages(caplog) == [AWAY + "a", AWAY + "a", AWAY + "b"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


# The pauses


def test_pauses_double_from_one_second_to_thirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spread: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        spread.append((low, high))
        return 1.0

    monkeypatch.setattr(random, "uniform", uniform)
    answers = iter([False] * 7 + [True, False])
    monkeypatch.setattr(PostgresSink, "drain", lambda *_, **__: next(answers, True))
    with sink(tmp_path, lambda: pytest.fail("no need to connect"), interval=0.25) as drained:
        assert [drained._work() for _ in range(9)] == [1, 2, 4, 8, 16, 30, 30, 0.25, 1]
    assert set(spread) == {(0.75, 1.25)}


# Its own work makes no spans


@on_both
def test_no_statement_of_the_sink_is_traced(database: Database, tmp_path: Path) -> None:
    """As an instrumentation of psycopg would see it: whether it is suppressed, at each statement on either path."""
    from opentelemetry.instrumentation.utils import is_instrumentation_enabled

    seen: list[tuple[str, bool]] = []

    class Seeing(psycopg.Cursor[Any]):
        def execute(self, *arguments: Any, **options: Any) -> Any:
            seen.append(("execute", is_instrumentation_enabled()))
            return super().execute(*arguments, **options)

        def copy(self, *arguments: Any, **options: Any) -> Any:
            seen.append(("copy", is_instrumentation_enabled()))
            return super().copy(*arguments, **options)

    def connect() -> psycopg.Connection[Any]:
        seen.append(("connect", is_instrumentation_enabled()))
        connection = database.sink_connection()
        connection.cursor_factory = Seeing
        return connection

    with sink(tmp_path, connect) as drained:
        for span_id in ("00000000000000a1", A2):
            drained.put(execution(), execution(span_id), step(late=True))
            assert drained.drain()
    assert {kind for kind, _ in seen} == {"connect", "execute", "copy"}
    assert [kind for kind, enabled in seen if enabled] == []
    assert is_instrumentation_enabled()


# What it measures


def test_batches_and_their_lag_are_measured(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sink(tmp_path, database.sink_connection) as drained:
        assert drained.drain()
        assert (drained.batches, drained.batch_seconds, drained.lag) == (0, 0.0, 0.0)
        ended = EXECUTION_ROW["created_at"].timestamp()
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: ended + 12.5)
            drained.put(execution(A2, end=EXECUTION_ROW["created_at"]), step())
            assert drained.drain()
        assert (drained.batches, drained.lag) == (1, 12.5)
        assert 0 < drained.batch_seconds < 10
        drained.spool.append(STEPS, b"bad\n")
        assert drained.drain()
        assert (drained.batches, drained.lag) == (2, 12.5)
