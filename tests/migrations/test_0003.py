"""The roll-up's migration: rows that were there before are in it, and what it computes is what the sink computes."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import text

from app.database import MIGRATIONS, Database
from app.rollup import compact, differences
from telemetry.metrics import AGENT_SECONDS
from telemetry.spool import EXECUTIONS
from tests.conftest import Server
from tests.migrations.test_0001 import ROWS
from tests.telemetry.stored import execution, rows, sink

pytestmark = pytest.mark.parametrize("server", ["embedded", "postgres15"], indirect=True)
EVER = datetime(2000, 1, 1, tzinfo=UTC)


def alembic(database: Database, to: str) -> None:
    """Migrate up or down, as an operator would, by hand."""
    url = database.url.render_as_string(hide_password=False)
    config = Config(MIGRATIONS / "alembic.ini", cmd_opts=None)
    config.cmd_opts = type("Arguments", (), {"x": [f"url={url}"]})()
    (command.downgrade if to == "0002" else command.upgrade)(config, to)


def test_rows_of_the_release_before_are_backfilled(server: Server, database: Database, tmp_path: Path) -> None:
    alembic(database, "0002")
    server.execute(ROWS, str(database.url.database))
    database.migrate()
    assert differences(database, EVER) == []
    with database.connect("spanledger_admin") as connection:
        assert connection.scalar(text("SELECT sum(executions) FROM execution_rollup")) == 5000
    with sink(tmp_path, database.sink_connection) as drained:
        drained.put(execution())
        assert drained.drain()
    compact(database)
    assert differences(database, EVER) == []


def test_down_and_up_again(database: Database, tmp_path: Path) -> None:
    with sink(tmp_path, database.sink_connection) as drained:
        drained.put(execution())
        assert drained.drain()
        alembic(database, "0002")
        with database.sink_connection() as connection:  # as the release before: it may still settle and no more
            connection.execute("SELECT is_root, tokens_used FROM agent_executions")
            with pytest.raises(InsufficientPrivilege), connection.transaction():
                connection.execute("SELECT agent_name FROM agent_executions")
        drained.put(execution("00000000000000a2"))
        assert not drained.drain()
        database.migrate()
        assert drained.drain()
    assert [row["span_id"] for row in rows(database, EXECUTIONS)] == ["00000000000000a1", "00000000000000a2"]
    assert differences(database, EVER) == []


def test_buckets_are_those_of_the_metric(database: Database) -> None:
    bounds = [seconds * 1000 for seconds in AGENT_SECONDS]
    near = [[bound - 1e-6, bound, bound + 1e-6] for bound in bounds]
    values = [-5.0, 0.0, *itertools.chain(*near), 8e12]
    with database.connect("spanledger_admin") as connection:
        found = connection.execute(
            text("SELECT spanledger_duration_le(ms) FROM unnest(CAST(:values AS double precision[])) AS ms"),
            {"values": values},
        ).scalars()
        assert list(found) == [(*AGENT_SECONDS, float("inf"))[bisect_left(bounds, value)] for value in values]


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("agent_executions", "execution_time_ms"),
        ("agent_executions", "cost_usd"),
        ("agent_executions", "cost_total_usd"),
        ("execution_steps", "duration_ms"),
        ("execution_steps", "cost_usd"),
    ],
)
def test_what_cannot_be_added_up_is_refused_in_old_and_new_partitions(
    database: Database, server: Server, table: str, column: str
) -> None:
    server.execute(ROWS, str(database.url.database))
    values = ("NaN", "Infinity", "-Infinity", "1e300")
    insert = f"""
        INSERT INTO {table} SELECT (jsonb_populate_record(NULL::{table}, to_jsonb(e) || jsonb_build_object(
            'operation', 'chat', 'duration_ms', 1, 'created_at', now() - %s * interval '1 day', '{column}', %s::text
        ))).* FROM (SELECT * FROM agent_executions LIMIT 1) e
    """
    with database.sink_connection() as sink_connection:
        sink_connection.execute("SELECT spanledger_ensure_partitions(CURRENT_DATE - 20)")
        sink_connection.execute("RESET ROLE")
        for days, value in itertools.product((0, 20), values):
            with pytest.raises(psycopg.errors.CheckViolation, match='"finite"'), sink_connection.transaction():
                sink_connection.execute(insert.encode(), (days, value))


def test_who_may_do_what(database: Database) -> None:
    may: dict[str, list[str]] = {}
    for role in ("spanledger_sink", "spanledger_admin", "spanledger_reader", "spanledger_grafana"):
        with psycopg.connect(database.url.set(drivername="postgresql").render_as_string(False), autocommit=True) as c:
            c.execute(f"SET ROLE {role}".encode())
            may[role] = []
            for right, statement in (
                ("SELECT", "SELECT * FROM execution_rollup"),
                ("INSERT", "INSERT INTO execution_rollup SELECT * FROM execution_rollup"),
                ("UPDATE", "UPDATE execution_rollup SET executions = 0"),
                ("DELETE", "DELETE FROM execution_rollup"),
                ("TRUNCATE", "TRUNCATE execution_rollup"),
                ("of rows", "SELECT * FROM spanledger_rollup_of_rows('-infinity', 'infinity')"),
            ):
                try:
                    c.execute(statement.encode())
                    may[role].append(right)
                except InsufficientPrivilege:
                    pass
    assert may == {
        "spanledger_sink": ["SELECT", "INSERT", "DELETE", "of rows"],
        "spanledger_admin": ["SELECT", "of rows"],
        "spanledger_reader": [],
        "spanledger_grafana": ["SELECT"],
    }
