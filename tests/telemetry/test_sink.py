"""The sink stores every row exactly once, whatever Postgres, the rows or the process do meanwhile."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text

from app.database import Database
from telemetry import sink as sink_module
from telemetry import spool as spool_module
from telemetry.caller import Caller
from telemetry.execution import EXECUTION_COLUMNS
from telemetry.loader import Loader
from telemetry.spool import EXECUTIONS, STEPS, Segment, Spool
from telemetry.usage import Usage
from tests.conftest import Server
from tests.telemetry.stored import END, EXECUTION_ROW, STEP_ROW, Sink, execution, rows, sink, step, usage

Connect = Callable[[], psycopg.Connection[Any]]
A1, A2, A3 = (f"00000000000000a{number}" for number in (1, 2, 3))
NOTHING = {EXECUTIONS: 0, STEPS: 0}
DETAIL = {"constraint": 0, "data": 0, "timestamp": 0}


@pytest.fixture
def drained(database: Database, tmp_path: Path) -> Iterator[Sink]:
    with sink(tmp_path, database.sink_connection) as made:
        yield made


def span_ids(database: Database, table: str = EXECUTIONS) -> list[str]:
    return [row["span_id"] for row in rows(database, table)]


def as_owner(database: Database, *statements: str) -> None:
    with database.sink_connection() as connection:
        connection.execute("RESET ROLE")
        for statement in statements:
            connection.execute(statement.encode())


def rejected(directory: Path) -> list[dict[str, Any]]:
    path = directory / "rejected.ndjson"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_both_tables_are_drained(database: Database, drained: Sink) -> None:
    before = time.time()
    drained.put(execution(), execution(A2, agent_name="other"), step())
    assert drained.drain()
    assert rows(database, EXECUTIONS) == [EXECUTION_ROW, EXECUTION_ROW | {"span_id": A2, "agent_name": "other"}]
    assert rows(database, STEPS) == [STEP_ROW]
    assert drained.stored == {EXECUTIONS: 2, STEPS: 1}
    assert (drained.duplicates, drained.rejected, drained.failures) == (NOTHING, DETAIL, 0)
    assert before <= drained.last_success <= time.time()
    assert drained.spool.ready() == []
    assert drained.guard.counts == {}


def test_a_drained_spool_is_empty_at_once(drained: Sink) -> None:
    drained.put(execution())
    assert drained.drain()
    spool = drained.spool
    assert (spool.pending_bytes(), spool.segments, spool.oldest) == (0, 0, None)


def test_a_table_alone(database: Database, drained: Sink) -> None:
    drained.put(step())
    assert drained.drain()
    assert (rows(database, EXECUTIONS), rows(database, STEPS)) == ([], [STEP_ROW])


def test_nothing_to_drain_needs_no_postgres(tmp_path: Path) -> None:
    def connect() -> psycopg.Connection[Any]:
        raise AssertionError("no need to connect")

    with sink(tmp_path, connect) as drained:
        assert drained.drain()


# Exactly once


def test_a_replayed_segment_adds_nothing(database: Database, drained: Sink, tmp_path: Path) -> None:
    drained.put(execution(), execution(A2), step())
    drained.spool.seal()
    copied = tmp_path / "1-copied"
    shutil.copytree(drained.spool.writer, copied)
    assert drained.drain()
    assert (span_ids(database), span_ids(database, STEPS)) == ([A1, A2], [STEP_ROW["span_id"]])
    assert drained.stored == {EXECUTIONS: 2, STEPS: 1}
    assert drained.duplicates == {EXECUTIONS: 2, STEPS: 1}
    assert drained.spool.ready() == []
    assert not copied.exists()


def test_a_segment_half_of_which_is_new(database: Database, drained: Sink) -> None:
    drained.put(execution(), step())
    assert drained.drain()
    drained.put(execution(), execution(A2), step())
    assert drained.drain()
    assert (span_ids(database), span_ids(database, STEPS)) == ([A1, A2], [STEP_ROW["span_id"]])
    assert (drained.stored, drained.duplicates) == ({EXECUTIONS: 2, STEPS: 1}, {EXECUTIONS: 1, STEPS: 1})


def test_a_crash_between_commit_and_unlink(database: Database, drained: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(segment: Segment) -> None:
        raise OSError("crashed")

    drained.put(execution(), step())
    with monkeypatch.context() as patch:
        patch.setattr(Segment, "remove", crash)
        assert not drained.drain()
    assert (len(drained.spool.ready()), drained.failures, drained.guard.counts) == (1, 1, {"sink": 1})
    assert drained.drain()
    assert (rows(database, EXECUTIONS), rows(database, STEPS)) == ([EXECUTION_ROW], [STEP_ROW])
    assert (drained.stored, drained.duplicates) == ({EXECUTIONS: 1, STEPS: 1}, {EXECUTIONS: 1, STEPS: 1})


# Batches


def commits(database: Database) -> int:
    """Transactions that wrote executions: each row has the number of its own."""
    with database.connect("spanledger_admin") as connection:
        return int(connection.scalar(text("SELECT count(DISTINCT xmin::text) FROM agent_executions")) or 0)


def put_segments(drained: Sink, *span_ids: str) -> None:
    """A segment for each execution."""
    for span_id in span_ids:
        drained.put(execution(span_id))
        drained.spool.seal()


@pytest.mark.parametrize(
    ("segments", "rows_of_bytes", "expected"), [(64, 1000, 1), (4, 1000, 3), (64, 3, 4), (64, 0, 10)]
)
def test_consecutive_segments_are_loaded_together(
    database: Database,
    drained: Sink,
    monkeypatch: pytest.MonkeyPatch,
    segments: int,
    rows_of_bytes: int,
    expected: int,
) -> None:
    monkeypatch.setattr(sink_module, "BATCH_SEGMENTS", segments)
    monkeypatch.setattr(sink_module, "BATCH_BYTES", rows_of_bytes * len(execution().line()))
    ids = [f"{number:016x}" for number in range(10)]
    put_segments(drained, *ids)
    assert drained.drain()
    assert (span_ids(database), commits(database), drained.stored[EXECUTIONS]) == (ids, expected, 10)
    assert drained.spool.ready() == []


def test_a_batch_that_fails_leaves_its_segments_and_those_before_it_are_gone(
    database: Database, drained: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "BATCH_SEGMENTS", 2)
    load, loads = Loader.load, count(1)

    def failing(loader: Loader, *arguments: Any) -> None:
        if next(loads) == 2:
            raise psycopg.OperationalError("gone")
        load(loader, *arguments)

    monkeypatch.setattr(Loader, "load", failing)
    put_segments(drained, *(f"{number:016x}" for number in range(6)))
    assert not drained.drain()
    assert (len(span_ids(database)), len(drained.spool.ready())) == (2, 4)
    assert drained.drain()
    assert (len(span_ids(database)), drained.duplicates, drained.spool.ready()) == (6, NOTHING, [])


def test_two_sinks_on_one_directory(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 2000)
    ids = [f"{number:016x}" for number in range(200)]
    with sink(tmp_path, database.sink_connection) as one, sink(tmp_path, database.sink_connection) as two:
        for number, span_id in enumerate(ids):
            (one, two)[number % 2].put(execution(span_id), step(span_id))
        for each in (one, two):
            each.spool.seal()
        assert len(one.spool.ready()) > 20
        together = threading.Barrier(2)

        def drain(each: Sink) -> None:
            together.wait()
            eventually(each.drain)

        threads = [threading.Thread(target=drain, args=(each,)) for each in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (span_ids(database), span_ids(database, STEPS)) == (ids, ids)
        assert one.stored + two.stored == {EXECUTIONS: 200, STEPS: 200}
        assert (one.rejected, two.rejected, one.spool.ready()) == (DETAIL, DETAIL, [])


# Bad rows


def test_bad_rows_are_set_aside_and_the_rest_goes_in(database: Database, drained: Sink, tmp_path: Path) -> None:
    good = execution().line()
    fields = good.split(b"\t")

    def changed(column: int, value: bytes) -> bytes:
        return b"\t".join([*fields[:column], value, *fields[column + 1 :]])

    huge = execution(A2, caller=Caller(secrets.token_hex(20_000), None, None)).line()  # no index takes such a key
    bad = [
        (changed(6, b"yesterday or so"), "data", 'invalid input syntax for type timestamp with time zone: "yesterday'),
        (b"\t".join(fields[:-1]) + b"\n", "data", 'missing data for column "output_data"'),
        (good[:-1] + b"\tmore\n", "data", "extra data after last expected column"),
        (b"\n", "data", "invalid input syntax for type boolean"),
        (changed(8, b"broken"), "constraint", 'new row for relation "agent_executions'),
        (changed(9, b"\\N"), "constraint", 'null value in column "agent_name"'),
        (execution(A2, own=Usage(2**63)).line(), "data", 'value "9223372036854775808" is out of range for type bigint'),
        (changed(EXECUTION_COLUMNS.index("attributes"), b"{"), "data", "invalid input syntax for type json"),
        (changed(9, b"\xff"), "data", 'invalid byte sequence for encoding "UTF8": 0xff'),
        (b"t\t\xff\0\n", "data", 'invalid byte sequence for encoding "UTF8"'),
        (changed(1, b"a\0b").replace(b"f", b"t", 1), "data", 'invalid byte sequence for encoding "UTF8": 0x00'),
        (huge, "data", "index row requires 40024 bytes, maximum size is 8191"),
    ]
    drained.put(step())
    for line, _, _ in bad[:6]:
        drained.spool.append(EXECUTIONS, line)
    drained.put(execution())
    for line, _, _ in bad[6:]:
        drained.spool.append(EXECUTIONS, line)
    drained.put(execution(A3))
    assert drained.drain()
    assert rows(database, EXECUTIONS) == [EXECUTION_ROW, EXECUTION_ROW | {"span_id": A3}]
    assert rows(database, STEPS) == [STEP_ROW]
    found = rejected(tmp_path)
    assert [(row["table"], row["reason"], row["line"]) for row in found] == [
        (EXECUTIONS, reason, line.decode("utf-8", "replace")) for line, reason, _ in bad
    ]
    assert [row["detail"][: len(detail)] for row, (*_, detail) in zip(found, bad, strict=True)] == [
        detail for *_, detail in bad
    ]
    assert drained.rejected == {"constraint": 2, "data": 10, "timestamp": 0}
    assert drained.stored == {EXECUTIONS: 2, STEPS: 1}
    assert (drained.failures, drained.guard.counts) == (0, {})


@pytest.mark.parametrize("days", [-36, -399, -450, -20_000, 9, 4000])
def test_a_day_outside_the_window_is_set_aside(database: Database, drained: Sink, tmp_path: Path, days: int) -> None:
    stray = execution(A2, end=END + timedelta(days=days))
    drained.put(execution(), stray, step())
    assert drained.drain()
    assert (rows(database, EXECUTIONS), rows(database, STEPS)) == ([EXECUTION_ROW], [STEP_ROW])
    (row,) = rejected(tmp_path)
    assert (row["reason"], row["line"]) == ("timestamp", stray.line().decode())
    assert row["detail"] == 'no partition of relation "agent_executions" found for row'
    assert drained.rejected == DETAIL | {"timestamp": 1}


def test_a_retention_longer_than_postgres_makes_partitions_for(database: Database, tmp_path: Path) -> None:
    with sink(tmp_path, database.sink_connection, retention=timedelta(days=1000)) as drained:
        drained.put(execution(), execution(A2, end=END - timedelta(days=500)))
        assert drained.drain()
        assert (span_ids(database), drained.rejected) == ([A1], DETAIL | {"timestamp": 1})


def test_missing_partitions_are_made(database: Database, drained: Sink) -> None:
    today, past = END, END - timedelta(days=30)
    as_owner(database, *(f"DROP TABLE {table}_{today:%Y%m%d}" for table in ("agent_executions", "execution_steps")))
    drained.put(execution(), execution(A2, end=past), step(end=past))
    assert drained.drain()
    ended = {"started_at": EXECUTION_ROW["started_at"] - timedelta(days=30), "created_at": past}
    assert rows(database, EXECUTIONS) == [EXECUTION_ROW, EXECUTION_ROW | ended | {"span_id": A2}]
    assert rows(database, STEPS) == [STEP_ROW | ended]
    assert (drained.stored, drained.failures) == ({EXECUTIONS: 2, STEPS: 1}, 0)


# Postgres away


def test_postgres_away_then_back(database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attempts: list[int] = []

    def connect() -> psycopg.Connection[Any]:
        attempts.append(1)
        if len(attempts) <= 3:
            raise psycopg.OperationalError("connection refused\nis it running?")
        return database.sink_connection()

    with sink(tmp_path, connect) as drained:
        drained.put(execution())
        assert [drained.drain() for _ in range(3)] == [False] * 3
        drained.put(execution(A2))
        assert (drained.failures, drained.guard.counts, drained.last_success) == (3, {}, 0.0)
        assert drained.drain()
        assert (span_ids(database), drained.failures, len(attempts)) == ([A1, A2], 3, 4)
    assert {record.message for record in caplog.records} == {
        "Postgres is not taking rows, they wait in the spool: connection refused"
    }


def terminate(database: Database, pid: int) -> None:
    with database.sink_connection() as connection:
        connection.execute("RESET ROLE")
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def test_a_connection_that_was_cut(database: Database, tmp_path: Path) -> None:
    opened: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        opened.append(database.sink_connection())
        return opened[-1]

    with sink(tmp_path, connect) as drained:
        drained.put(execution())
        assert drained.drain()
        terminate(database, opened[0].info.backend_pid)
        drained.put(execution(A2))
        assert not drained.drain()
        assert drained.drain()
        assert (span_ids(database), len(opened), drained.failures) == ([A1, A2], 2, 1)


def test_a_connection_that_is_cut_between_copy_and_commit(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settle(connection: psycopg.Connection[Any], traces: list[str]) -> None:
        assert connection.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
        terminate(database, connection.info.backend_pid)

    with sink(tmp_path, database.sink_connection) as drained:
        drained.put(execution(), step())
        with monkeypatch.context() as patch:
            patch.setattr("telemetry.loader.settle", settle)
            assert not drained.drain()
        assert (rows(database, EXECUTIONS), rows(database, STEPS), drained.stored) == ([], [], NOTHING)
        assert drained.drain()
        assert (rows(database, EXECUTIONS), rows(database, STEPS)) == ([EXECUTION_ROW], [STEP_ROW])
        assert (drained.stored, drained.duplicates) == ({EXECUTIONS: 1, STEPS: 1}, NOTHING)


def test_a_disk_that_will_not_commit_does_not_hold_up_rows(
    database: Database, drained: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(spool_module, "_datasync", refuse)
    drained.put(execution())
    assert drained.drain()
    assert (span_ids(database), drained.guard.counts) == ([A1], {"spool": 1})


# Roles


@contextmanager
def bound_role(database: Database, name: str) -> Iterator[Connect]:
    """Connections of a role with the sink's rights, but under row-level security, as on a managed Postgres."""
    as_owner(database, f"CREATE ROLE {name} NOBYPASSRLS IN ROLE spanledger_sink")

    def connect() -> psycopg.Connection[Any]:
        connection = database.sink_connection()
        connection.execute(sql.SQL("RESET ROLE"))
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(name)))
        connection.commit()
        return connection

    try:
        yield connect
    finally:
        as_owner(database, f"DROP ROLE {name}")


def test_a_role_that_row_level_security_binds(database: Database, tmp_path: Path) -> None:
    with bound_role(database, f"bound_{os.getpid()}") as connect, sink(tmp_path, connect) as drained:
        drained.put(execution(), step(), execution(A2, end=END - timedelta(days=20)))
        drained.spool.append(STEPS, b"bad\n")
        assert drained.drain()
        drained.put(execution(), step(A3, usage=usage(5, "0.1"), late=True))
        assert drained.drain()
        assert [row["span_id"] for row in rows(database, EXECUTIONS)] == [A1, A2]
        settled = {
            **{"tokens_used": 10, "input_tokens": 5, "output_tokens": 5, "tokens_total": 10},
            **{"cost_source": "local"},
        }
        first = rows(database, EXECUTIONS)[0]
        assert first == EXECUTION_ROW | settled | {name: first[name] for name in ("cost_usd", "cost_total_usd")}
        assert (str(first["cost_usd"]), str(first["cost_total_usd"])) == ("0.1", "0.1")
        assert span_ids(database, STEPS) == [A3, STEP_ROW["span_id"]]
        assert (drained.stored, drained.duplicates) == ({EXECUTIONS: 2, STEPS: 2}, {EXECUTIONS: 1, STEPS: 0})
        assert (drained.failures, drained.guard.counts) == (0, {})


# The thread


def test_the_thread_drains_and_stop_leaves_nothing(database: Database, tmp_path: Path) -> None:
    opened: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        opened.append(database.sink_connection())
        return opened[-1]

    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "spanledger-sink"]

    with sink(tmp_path, connect, interval=0.02) as drained:
        drained.start()
        drained.put(execution())
        eventually(lambda: drained.stored[EXECUTIONS] == 1)
        assert threads() == ["spanledger-sink"]
        for number in range(50):
            drained.put(step(f"{number:016x}"))
        assert drained.stop()
        assert (len(rows(database, STEPS)), drained.spool.ready(), threads()) == (50, [], [])
        assert [connection.closed for connection in opened] == [True]


def test_stop_keeps_its_deadline_and_leaves_rows_on_disk(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def connect() -> psycopg.Connection[Any]:
        entered.set()
        leave.wait(30)
        raise psycopg.OperationalError("at last")

    with sink(tmp_path, connect, interval=0.01) as drained:
        drained.start()
        drained.put(execution())
        assert entered.wait(10)
        started = time.monotonic()
        assert not drained.stop(0.2)
        assert 0.2 <= time.monotonic() - started < 5
        leave.set()
        drained._worker._thread.join(10)
        assert not drained._worker._thread.is_alive()
        assert len(drained.spool.ready()) == 1


def test_rows_left_by_a_stop_are_adopted(database: Database, tmp_path: Path) -> None:
    def connect() -> psycopg.Connection[Any]:
        raise psycopg.OperationalError("away")

    with sink(tmp_path, connect) as first:
        first.put(execution(), step())
        assert not first.stop()
    with sink(tmp_path, database.sink_connection) as second:
        assert second.drain()
        assert (rows(database, EXECUTIONS), rows(database, STEPS)) == ([EXECUTION_ROW], [STEP_ROW])
        assert second.drain()
        assert not first.spool.writer.exists()


def test_a_drain_that_runs_out_of_time(database: Database, drained: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 1)
    drained.put(execution(), execution(A2))
    assert not drained.drain(0.0)
    assert (rows(database, EXECUTIONS), len(drained.spool.ready()), drained.failures) == ([], 2, 0)
    assert drained.drain()
    assert span_ids(database) == [A1, A2]


def test_a_forked_child_has_its_own_thread_and_connection(server: Server, database: Database, tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
from app.database import Database
from tests.telemetry.stored import Sink, execution
database = Database(sys.argv[1])
sink = Sink(Path(sys.argv[2]), database.sink_connection, interval=0.02)
sink.start()

def store(*span_ids):
    before = sink.stored["executions"]
    for span_id in span_ids:
        sink.put(execution(span_id))
    deadline = time.monotonic() + 20
    while sink.stored["executions"] < before + len(span_ids):
        assert time.monotonic() < deadline, (sink.guard.counts, sink.failures)
        time.sleep(0.01)

store("00000000000000a1")
pid = sink._connection.info.backend_pid
with sink._draining:  # at the moment of the fork, and as long as the child stores its rows
    child = os.fork()
    if child == 0:
        try:
            store("00000000000000a2", "00000000000000a3")
            print(sink._connection.info.backend_pid != pid, sink.stop(), flush=True)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
store("00000000000000a4")
print(sink._connection.info.backend_pid == pid, sink.failures, sink.stop(), flush=True)
"""
    url = database.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-c", script, url, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True True\nTrue 0 True\n", "", 0)
    assert span_ids(database) == [A1, A2, A3, "00000000000000a4"]
    assert Spool(tmp_path).ready() == []
