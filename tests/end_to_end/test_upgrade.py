"""From the release before: its schema, with rows in it, and a spool that it had not sent when it was killed."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from app.check import check
from app.database import Database
from telemetry.execution import EXECUTION_COLUMNS, STEP_COLUMNS
from telemetry.home import is_alive
from telemetry.spool import EXECUTIONS, STEPS
from tests.app.service import Service
from tests.end_to_end.waiting import drained, eventually
from tests.migrations.test_0003 import EVER, alembic
from tests.telemetry.stored import rows

END = datetime.now(UTC) - timedelta(minutes=1)
TIMES = "\t".join(f"{moment:%Y-%m-%d %H:%M:%S.%f}+00" for moment in (END - timedelta(seconds=1), END))
CALLER_AND_SERVICE = r"u1	\N	r1	tutor	\N	0.0.9	test	i-0"
REST = r"\N	\N	{}	\N	\N"


def execution(number: int) -> bytes:
    """A line as that release wrote it, of an agent with one call of 110 tokens."""
    ids = rf"f	{number:032x}	{number:016x}	\N	\N	{TIMES}"
    usage = r"1000.000000	\N	110	100	0	0	10	0	110	m	p	0.01	0.01	local"
    return rf"{ids}	t	success	old	1.0	{CALLER_AND_SERVICE}	{usage}	{REST}".encode() + b"\n"


def step(number: int, of: int, late: str = "f") -> bytes:
    """The line of a call of execution `of`."""
    ids = rf"{late}	{of:032x}	{number:016x}	{of:016x}	{of:016x}	{TIMES}"
    usage = r"500.000000	\N	\N	m	m	p	100	0	0	10	0	0.01	local"
    return rf"{ids}	chat	success	old	{CALLER_AND_SERVICE}	{usage}	{REST}".encode() + b"\n"


def store(database: Database, table: str, columns: tuple[str, ...], lines: bytes) -> None:
    with database.sink_connection() as connection, connection.cursor() as cursor:
        with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN".encode()) as copy:
            copy.write(lines)


def left_by_the_release_before(spool_dir: Path) -> None:
    """Its files are appended to, not mapped: they end with their last line. It keeps no slots of open runs."""
    home = spool_dir / "4711-9f2c01aa"
    home.mkdir(parents=True)
    for name, content in {
        "lock": b"",
        # Stored already: it was killed between the commit and the removal.
        "000000000001.v1.executions": execution(1),
        "000000000001.v1.steps": step(0xA1, 1),
        "000000000002.v1.executions": execution(2),
        "000000000002.v1.steps": step(0xA2, 2) + step(0xB1, 1, late="t"),
        # Killed between the two renames.
        "000000000003.v1.executions.open": execution(3),
        "000000000003.v1.steps": step(0xA3, 3),
        # Being written, the last line in the middle.
        "000000000004.v1.executions.open": execution(4) + execution(5)[:100],
        "000000000004.v1.steps.open": step(0xA4, 4),
    }.items():
        (home / name).write_bytes(content)


def test_what_it_left_is_stored_once_and_adds_up(database: Database, data_dir: Path) -> None:
    alembic(database, "0002")
    store(database, "agent_executions", EXECUTION_COLUMNS, execution(1))
    store(database, "execution_steps", STEP_COLUMNS, step(0xA1, 1))
    left_by_the_release_before(data_dir / "spool")
    url = database.url.render_as_string(hide_password=False)
    with Service(data_dir, DATABASE_URL=url, LOG_LEVEL="error") as service:
        service.ready()
        eventually(lambda: len(rows(database, EXECUTIONS)) == 4)
        drained(service)
        metrics = httpx.get(f"{service.url}/metrics", timeout=10).text.splitlines()
        eventually(lambda: all(is_alive(path) for path in (data_dir / "spool").iterdir()))
        assert service.stop(signal.SIGTERM)[2] == ""
    tokens = {row["span_id"]: (row["tokens_used"], row["tokens_total"]) for row in rows(database, EXECUTIONS)}
    once = {f"{number:016x}": (110, 110) for number in (2, 3, 4)}
    assert tokens == {f"{1:016x}": (220, 220), **once}
    assert [row["span_id"] for row in rows(database, STEPS)] == [
        f"{number:016x}" for number in (0xA1, 0xA2, 0xA3, 0xA4, 0xB1)
    ]
    assert not check(database, EVER)
    wanted = {
        'spanledger_sink_rows_duplicate_total{table="executions"} 1.0',
        'spanledger_sink_rows_duplicate_total{table="steps"} 1.0',
        "spanledger_spool_torn_lines_total 1.0",
        'spanledger_rows_rejected_total{reason="data"} 0.0',
    }
    assert wanted - set(metrics) == set()
