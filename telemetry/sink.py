"""PostgresSink: loads sealed segments into Postgres, exactly once in effect, and forgets them only then.

The fast path streams a segment's bytes with COPY straight into the tables: both files, one transaction. A segment
that was loaded before (a crash between commit and unlink) breaks the primary key; it then goes through a staging
table and ON CONFLICT DO NOTHING, which adds nothing twice. Lines that Postgres refuses are found by halving and
set aside, so that one bad row never holds up the rest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from opentelemetry import context as otel_context
from psycopg import errors, sql

from .execution import EXECUTION_COLUMNS, STEP_COLUMNS
from .fork import in_child
from .guard import Guard
from .settle import settle
from .spool import EXECUTIONS, STEPS, TABLES, Segment, Spool
from .worker import Worker

Connection = psycopg.Connection[Any]
Observer = Callable[[str, list[bytes]], None]
_logger = logging.getLogger("spanledger")
_NAMES = {EXECUTIONS: "agent_executions", STEPS: "execution_steps"}
_COLUMNS = {EXECUTIONS: EXECUTION_COLUMNS, STEPS: STEP_COLUMNS}
_TRACE_ID, _SPAN_ID, _CREATED_AT = map(EXECUTION_COLUMNS.index, ("trace_id", "span_id", "created_at"))
_UNAVAILABLE = (psycopg.OperationalError, psycopg.InterfaceError)
# What is wrong with a row, not with Postgres; the last two, such as an id too long to be indexed, count as operational.
_REFUSED = (psycopg.DataError, psycopg.IntegrityError, errors.ProgramLimitExceeded, errors.StatementTooComplex)
_NOTHING, _KEYS = sql.SQL(""), sql.SQL(" RETURNING trace_id, span_id, created_at")
# LIKE would need SELECT on the whole table, and our role may read keys and usage only.
_COLUMN_TYPES = """
    SELECT string_agg(format('%%I %%s', attname, format_type(atttypid, atttypmod)), ', ')
    FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
"""


class PostgresSink:
    """One thread that drains the spool.

    Args:
        connect: Opens a connection whose role may insert; called again after each failure.
        interval: Seconds between two looks at the spool.
        retention: How old a row may be; no partition is made for an older one.
        observe: Told the table and the lines that were stored and had not been before; must not raise.
    """

    def __init__(
        self,
        spool: Spool,
        connect: Callable[[], Connection],
        guard: Guard,
        *,
        interval: float = 1.0,
        retention: timedelta = timedelta(days=35),
        observe: Observer | None = None,
    ) -> None:
        self.stored: Counter[str] = Counter(dict.fromkeys(TABLES, 0))
        self.duplicates: Counter[str] = Counter(dict.fromkeys(TABLES, 0))
        self.rejected: Counter[str] = Counter(dict.fromkeys(("constraint", "data", "timestamp"), 0))
        self.failures = 0
        self.last_success = 0.0
        self._spool = spool
        self._connect = connect
        self._guard = guard
        self._interval = interval
        self._retention = retention
        self._observe = observe
        self._connection: Connection | None = None
        self._inherited: Connection | None = None
        self._staged_only = False
        self._pause = interval
        self._draining = threading.Lock()
        in_child(self._after_fork)
        self._worker = Worker("spanledger-sink", self._work, interval)

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """Drain once more and stop; False when something is left on disk (it is adopted at the next start)."""
        deadline = time.monotonic() + timeout
        stopped = self._worker.stop(timeout)
        drained = self.drain(max(0.0, deadline - time.monotonic()))
        if stopped:
            self._hang_up()
        return drained

    def _after_fork(self) -> None:
        """A child may not speak on its parent's connection, nor wait for a lock whose holder it does not have."""
        self._inherited, self._connection = self._connection, None
        if self._inherited is not None:
            with contextlib.suppress(psycopg.Error, OSError):  # not close(): that ends the parent's session
                os.close(self._inherited.fileno())
        self._draining = threading.Lock()

    def drain(self, timeout: float = 10.0) -> bool:
        """Seal the spool and load all there is; True when nothing is left. Callable from any thread."""
        deadline = time.monotonic() + timeout
        if not self._draining.acquire(timeout=timeout):
            return False
        suppressed = otel_context.attach(otel_context.set_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            self._seal()
            for segment in self._spool.ready():
                if time.monotonic() > deadline:
                    return False
                self._load(segment)
                segment.remove()
            self._spool.look()
            self.last_success = time.time()
            return True
        except _UNAVAILABLE as error:
            self.failures += 1
            self._hang_up()
            _logger.warning("Postgres is not taking rows, they wait in the spool: %s", _first_line(error))
            return False
        except Exception:
            self.failures += 1
            self._guard.report("sink")
            self._hang_up()
            return False
        finally:
            otel_context.detach(suppressed)
            self._draining.release()

    def _work(self) -> float:
        if self.drain(timeout=3600.0):
            self._pause = self._interval
        else:
            self._pause = min(30.0, max(1.0, self._pause * 2)) * random.uniform(0.75, 1.25)
        return self._pause

    def _seal(self) -> None:
        try:
            self._spool.seal()
        except OSError:  # the disk would not commit, or is gone: what it still has can be loaded
            self._guard.report("spool")

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def _load(self, segment: Segment) -> None:
        lines = {table: segment.read(table) for table in TABLES}
        connection = self._connected()
        try:
            if self._staged_only:
                self._load_staged(connection, lines)
            else:
                self._load_straight(connection, lines)
        except errors.FeatureNotSupported:  # row-level security binds our role, and COPY will not have it
            self._staged_only = True
            self._load_staged(connection, lines)
        except _REFUSED:
            self._load_staged(connection, lines)

    def _load_straight(self, connection: Connection, lines: dict[str, bytes]) -> None:
        with connection.transaction():
            for table, data in lines.items():
                if data:
                    _copy(connection, sql.Identifier(_NAMES[table]), table, data)
            settle(connection, _late_traces(lines))
        for table, data in lines.items():
            self.stored[table] += data.count(b"\n")
            if self._observe is not None:
                self._observe(table, data.splitlines(keepends=True))

    def _load_staged(self, connection: Connection, lines: dict[str, bytes]) -> None:
        self._make_partitions(connection, lines)
        for table, data in lines.items():
            self._store(connection, table, data.splitlines(keepends=True))
        try:
            settle(connection, _late_traces(lines))
        except psycopg.DataError:  # sums beyond what a bigint holds; the rows are stored, their totals as they came
            self._guard.report("sink")

    def _store(self, connection: Connection, table: str, lines: list[bytes]) -> None:
        """Insert lines through a staging table; halve them until those that Postgres refuses stand alone."""
        if not lines:
            return
        name, columns = _NAMES[table], sql.SQL(", ").join(map(sql.Identifier, _COLUMNS[table]))
        staging = sql.Identifier("spanledger_staging")
        try:
            with connection.transaction(), connection.cursor() as cursor:
                (types,) = cursor.execute(_COLUMN_TYPES, (name,)).fetchone() or ("",)
                cursor.execute(sql.SQL("CREATE TEMP TABLE {} ({}) ON COMMIT DROP").format(staging, sql.SQL(types)))
                _copy(connection, staging, table, b"".join(lines))
                cursor.execute(
                    sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT DO NOTHING{}").format(
                        sql.Identifier(name), columns, columns, staging, _NOTHING if self._observe is None else _KEYS
                    )
                )
                inserted = cursor.rowcount
                new = [] if self._observe is None else _lines_of(cursor.fetchall(), lines)
        except _REFUSED as error:
            if len(lines) > 1:
                middle = len(lines) // 2
                self._store(connection, table, lines[:middle])
                self._store(connection, table, lines[middle:])
                return
            reason = _reason(error)
            self._spool.reject(table, lines[0], reason, _first_line(error))
            self.rejected[reason] += 1
            return
        if self._observe is not None:
            self._observe(table, new)
        self.stored[table] += inserted
        self.duplicates[table] += len(lines) - inserted

    def _make_partitions(self, connection: Connection, lines: dict[str, bytes]) -> None:
        """Make the partitions these lines need, where they are within the retention window."""
        today = datetime.now(UTC).date()
        for day in sorted(_days(lines)):
            if today - self._retention <= day <= today + timedelta(days=1):
                with contextlib.suppress(psycopg.DataError):  # further back than Postgres makes any: rows are set aside
                    connection.execute("SELECT spanledger_ensure_partitions(%s)", (day,))

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
            self._connection.autocommit = True
        return self._connection


def _copy(connection: Connection, target: sql.Identifier, table: str, data: bytes) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS[table]))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(target, columns)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(data)


def _late_traces(lines: dict[str, bytes]) -> list[str]:
    """Traces in which something ended after the execution above it: their totals are settled from the steps."""
    traces = {
        line.split(b"\t", _TRACE_ID + 1)[_TRACE_ID]
        for data in lines.values()
        if data.startswith(b"t\t") or b"\nt\t" in data
        for line in data.splitlines()
        if line.startswith(b"t\t")
    }
    return sorted(trace.decode() for trace in traces if trace.isalnum())  # else a bad row: halving finds it


def _lines_of(keys: list[tuple[str, str, datetime]], lines: list[bytes]) -> list[bytes]:
    """The lines with these keys, each key once: those that were not there before."""
    new = {
        f"{trace_id}\t{span_id}\t{created_at:%Y-%m-%d %H:%M:%S.%f}+00".encode()
        for trace_id, span_id, created_at in keys
    }
    found = []
    for line in lines:
        columns = line.split(b"\t", _CREATED_AT + 1)
        key = b"\t".join((columns[_TRACE_ID], columns[_SPAN_ID], columns[_CREATED_AT]))
        if key in new:
            new.remove(key)
            found.append(line)
    return found


def _days(lines: dict[str, bytes]) -> set[date]:
    days = set()
    for data in lines.values():
        for line in data.splitlines():
            columns = line.split(b"\t", _CREATED_AT + 1)
            if len(columns) > _CREATED_AT:
                try:
                    days.add(date.fromisoformat(columns[_CREATED_AT][:10].decode()))
                except ValueError:
                    pass  # a bad row: halving finds it
    return days


def _reason(error: psycopg.Error) -> str:
    if isinstance(error, errors.CheckViolation) and error.diag.constraint_name is None:
        return "timestamp"  # no partition, and none may be made: outside the retention window
    return "constraint" if isinstance(error, psycopg.IntegrityError) else "data"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
