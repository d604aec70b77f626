"""Loader: puts lines into the tables, each once in effect, with what they add to the roll-up.

The fast path streams the lines with COPY straight into the tables, in one transaction. Lines that are there already
(a crash between commit and unlink) break the primary key; they then go through a staging table and ON CONFLICT DO
NOTHING, which adds nothing twice. Lines that Postgres refuses are found by halving and set aside, so that one bad
row never holds up the rest.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from psycopg import errors, sql

from . import rollup
from .execution import EXECUTION_COLUMNS, STEP_COLUMNS
from .guard import Guard
from .settle import settle
from .spool import EXECUTIONS, STEPS, TABLES

Connection = psycopg.Connection[Any]
Reject = Callable[[str, bytes, str, str], None]
_NAMES = {EXECUTIONS: "agent_executions", STEPS: "execution_steps"}
_COLUMNS = {EXECUTIONS: EXECUTION_COLUMNS, STEPS: STEP_COLUMNS}
_TRACE_ID, _SPAN_ID, _CREATED_AT = map(EXECUTION_COLUMNS.index, ("trace_id", "span_id", "created_at"))
# What is wrong with a row, not with Postgres; of psycopg's, the last two, such as an id too long to be indexed, count
# as operational. A ValueError is ours: a row that cannot be added up or told from the others.
_REFUSED = (psycopg.DataError, psycopg.IntegrityError, errors.ProgramLimitExceeded, errors.StatementTooComplex)
_UNUSABLE = (*_REFUSED, ValueError)
_SENT_LINES = 32  # with texts about a third of what a socket holds
# LIKE would need SELECT on the whole table, and our role may read keys and usage only.
_COLUMN_TYPES = """
    SELECT string_agg(format('%%I %%s', attname, format_type(atttypid, atttypmod)), ', ')
    FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
"""


class Loader:
    """Loads lines on a connection in autocommit mode, and counts rows by table and refusals by reason.

    Args:
        reject: Sets a line aside: table, line, reason, detail.
        retention: How old a row may be; no partition is made for an older one.
    """

    def __init__(self, reject: Reject, guard: Guard, retention: timedelta) -> None:
        self.stored: Counter[str] = Counter(dict.fromkeys(TABLES, 0))
        self.duplicates: Counter[str] = Counter(dict.fromkeys(TABLES, 0))
        self.rejected: Counter[str] = Counter(dict.fromkeys(("constraint", "data", "timestamp"), 0))
        self._reject = reject
        self._guard = guard
        self._retention = retention
        self._staged_only = False

    def load(self, connection: Connection, data: dict[str, list[bytes]]) -> None:
        """Store the lines of both tables, given in pieces; when this returns, all of them are committed or set aside.

        Raises:
            psycopg.Error: Postgres is not taking rows, whatever is in them.
        """
        # splitlines() would take five times as long
        lines = {table: [line for piece in data[table] for line in io.BytesIO(piece)] for table in TABLES}
        if not self._staged_only:
            try:
                self._load_straight(connection, lines)
                return
            except errors.FeatureNotSupported:  # row-level security binds our role, and COPY will not have it
                self._staged_only = True
            except _UNUSABLE:
                pass
        self._load_staged(connection, lines)

    def _load_straight(self, connection: Connection, lines: dict[str, list[bytes]]) -> None:
        with connection.transaction():
            with _copying(connection, sql.Identifier(_NAMES[EXECUTIONS]), EXECUTIONS) as copy:
                deltas = rollup.deltas(_sent(copy, lines[EXECUTIONS]))
            with _copying(connection, sql.Identifier(_NAMES[STEPS]), STEPS) as copy:
                copy.write(b"".join(lines[STEPS]))
            rollup.add(connection, deltas)
            settle(connection, _late_traces(lines))
        for table in TABLES:
            self._count(table, len(lines[table]), len(lines[table]))

    def _load_staged(self, connection: Connection, lines: dict[str, list[bytes]]) -> None:
        self._make_partitions(connection, lines)
        for table in TABLES:
            self._store(connection, table, lines[table])
        try:
            settle(connection, _late_traces(lines))
        except psycopg.DataError:  # sums beyond what a bigint holds; the rows are stored, their totals as they came
            self._guard.report("sink")

    def _store(self, connection: Connection, table: str, lines: list[bytes]) -> None:
        """Insert lines through a staging table; halve them until those that cannot be stored stand alone."""
        if not lines:
            return
        try:
            with connection.transaction():
                new = _insert(connection, table, lines)
                if table == EXECUTIONS:
                    rollup.add(connection, rollup.deltas(new))
        except _UNUSABLE as error:
            if len(lines) > 1:
                middle = len(lines) // 2
                self._store(connection, table, lines[:middle])
                self._store(connection, table, lines[middle:])
                return
            reason = _reason(error)
            self._reject(table, lines[0], reason, first_line(error))
            self.rejected[reason] += 1
            return
        self._count(table, len(new), len(lines))

    def _count(self, table: str, new: int, all_lines: int) -> None:
        self.stored[table] += new
        self.duplicates[table] += all_lines - new

    def _make_partitions(self, connection: Connection, lines: dict[str, list[bytes]]) -> None:
        """Make the partitions these lines need, where they are within the retention window."""
        today = datetime.now(UTC).date()
        for day in sorted(_days(lines)):
            if today - self._retention <= day <= today + timedelta(days=1):
                with contextlib.suppress(psycopg.DataError):  # further back than Postgres makes any: rows are set aside
                    connection.execute("SELECT spanledger_ensure_partitions(%s)", (day,))


def first_line(error: BaseException) -> str:
    """What an error says, without its context."""
    return str(error).strip().split("\n", 1)[0]


@contextlib.contextmanager
def _copying(connection: Connection, target: sql.Identifier, table: str) -> Iterator[psycopg.Copy]:
    columns = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS[table]))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(target, columns)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        yield copy


def _insert(connection: Connection, table: str, lines: list[bytes]) -> list[bytes]:
    """Insert what is not there yet; those lines.

    Raises:
        ValueError: A row was inserted whose line cannot be told.
    """
    name, columns = _NAMES[table], sql.SQL(", ").join(map(sql.Identifier, _COLUMNS[table]))
    staging = sql.Identifier("spanledger_staging")
    with connection.cursor() as cursor:
        (types,) = cursor.execute(_COLUMN_TYPES, (name,)).fetchone() or ("",)
        cursor.execute(sql.SQL("CREATE TEMP TABLE {} ({}) ON COMMIT DROP").format(staging, sql.SQL(types)))
        with _copying(connection, staging, table) as copy:
            copy.write(b"".join(lines))
        insert = "INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT DO NOTHING RETURNING trace_id, span_id, created_at"
        cursor.execute(sql.SQL(insert).format(sql.Identifier(name), columns, columns, staging))
        return _lines_of(cursor.fetchall(), lines)


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
    if new:
        raise ValueError("the key is not written as the spool writes it")
    return found


def _sent(copy: psycopg.Copy, lines: list[bytes]) -> Iterator[bytes]:
    """The lines, each after it was sent: whoever looks at them does so while Postgres is at them."""
    for first in range(0, len(lines), _SENT_LINES):
        some = lines[first : first + _SENT_LINES]
        copy.write(b"".join(some))
        yield from some


def _late_traces(lines: dict[str, list[bytes]]) -> list[str]:
    """Traces in which something ended after the execution above it: their totals are settled from the steps."""
    traces = {
        line.split(b"\t", _TRACE_ID + 1)[_TRACE_ID]
        for table in TABLES
        for line in lines[table]
        if line.startswith(b"t\t")
    }
    return sorted(trace.decode() for trace in traces if trace.isalnum())  # else a bad row: halving finds it


def _days(lines: dict[str, list[bytes]]) -> set[date]:
    days = set()
    for table in TABLES:
        for line in lines[table]:
            columns = line.split(b"\t", _CREATED_AT + 1)
            if len(columns) > _CREATED_AT:
                try:
                    days.add(date.fromisoformat(columns[_CREATED_AT][:10].decode()))
                except ValueError:
                    pass  # a bad row: halving finds it
    return days


def _reason(error: Exception) -> str:
    if isinstance(error, errors.CheckViolation) and error.diag.constraint_name is None:
        return "timestamp"  # no partition, and none may be made: outside the retention window
    return "constraint" if isinstance(error, psycopg.IntegrityError) else "data"
