"""Who may do what, tried as each role: never as superuser, on the embedded server and on Postgres 15."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.errors import FeatureNotSupported, InsufficientPrivilege, InvalidParameterValue
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from app.database import Database
from app.tables import agent_executions, execution_steps

pytestmark = pytest.mark.parametrize("server", ["embedded", "postgres15"], indirect=True)

NOW = datetime.now(UTC).replace(microsecond=0)
TODAY = NOW.strftime("%Y%m%d")
COMMON = {"started_at": NOW, "created_at": NOW, "late": False, "service_name": "tests", "attributes": "{}"}
TOKENS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
EXECUTION = {
    **COMMON,
    "trace_id": "t1",
    "is_root": True,
    "status": "success",
    "agent_name": "chat",
    "execution_time_ms": 12.5,
    "input_data": '"secret"',
    **dict.fromkeys(("tokens_used", "tokens_total", *TOKENS), 0),
}
STEP = {
    **COMMON,
    "trace_id": "t1",
    "operation": "chat",
    "status": "success",
    "duration_ms": 10.0,
    "output_data": '"secret"',
    **dict.fromkeys(TOKENS, 0),
}
EXECUTIONS = [
    {**EXECUTION, "span_id": "a1", "user_id": "ann"},
    {**EXECUTION, "span_id": "a2", "user_id": "ann", "parent_agent_span_id": "a1", "is_root": False},
    {**EXECUTION, "span_id": "b1", "user_id": "bob", "trace_id": "t2"},
]
STEPS = [
    {**STEP, "span_id": "s1", "agent_span_id": "a1", "user_id": "ann", "input_tokens": 30, "cost_usd": 3},
    {**STEP, "span_id": "s2", "agent_span_id": "a2", "user_id": "ann", "input_tokens": 7, "output_tokens": 5},
    {**STEP, "span_id": "s3", "agent_span_id": "b1", "user_id": "bob", "trace_id": "t2"},
]
COLUMNS = {table.name: list(table.columns.keys()) for table in (agent_executions, execution_steps)}


def copy(sink: psycopg.Connection[Any], table: str, rows: list[dict[str, Any]], target: str = "") -> None:
    """COPY as the sink does: whole rows in the columns' order, no column list."""
    with sink.cursor().copy(f"COPY {target or table} FROM STDIN") as lines:
        for row in rows:
            lines.write_row([row.get(column) for column in COLUMNS[table]])


@pytest.fixture
def sink(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with database.sink_connection() as connection:
        yield connection


@pytest.fixture
def rows(sink: psycopg.Connection[Any]) -> None:
    copy(sink, "agent_executions", EXECUTIONS)
    copy(sink, "execution_steps", STEPS)
    sink.commit()


@pytest.fixture
def bound_sink(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """The sink where BYPASSRLS could not be given: a role with the same rights, bound by the policies."""
    with database.sink_connection() as connection:
        connection.execute("RESET ROLE")
        connection.execute("CREATE ROLE bound_sink IN ROLE spanledger_sink")
        connection.execute("SET LOCAL ROLE bound_sink")
        yield connection
        connection.rollback()


def refused(sink: psycopg.Connection[Any], statement: str) -> bool:
    """Whether the role may not do this at all."""
    try:
        with sink.transaction():
            sink.execute(statement.encode())
    except InsufficientPrivilege:
        return True
    return False


STAGE = """
CREATE TEMP TABLE staged ON COMMIT DROP AS SELECT (NULL::agent_executions).* WITH NO DATA
"""
UNSTAGE = """
INSERT INTO agent_executions SELECT * FROM staged ON CONFLICT DO NOTHING RETURNING trace_id, span_id
"""
SETTLE = """
UPDATE agent_executions e SET input_tokens = s.input, output_tokens = s.output, cost_usd = s.cost,
    tokens_used = s.input + s.output
FROM (
    SELECT trace_id, agent_span_id,
        sum(input_tokens) AS input, sum(output_tokens) AS output, sum(cost_usd) AS cost
    FROM execution_steps WHERE trace_id = ANY(%s) GROUP BY trace_id, agent_span_id
) s
WHERE (e.trace_id, e.span_id) = (s.trace_id, s.agent_span_id)
"""
SETTLE_TOTALS = """
WITH RECURSIVE above (trace_id, span_id, tokens, cost) AS (
    SELECT trace_id, span_id, tokens_used, cost_usd FROM agent_executions WHERE trace_id = ANY(%(traces)s)
    UNION ALL
    SELECT e.trace_id, e.parent_agent_span_id, a.tokens, a.cost
    FROM above a JOIN agent_executions e ON (e.trace_id, e.span_id) = (a.trace_id, a.span_id)
    WHERE e.parent_agent_span_id IS NOT NULL
), totals AS (
    SELECT trace_id, span_id, sum(tokens) AS tokens, sum(cost) AS cost FROM above GROUP BY trace_id, span_id
)
UPDATE agent_executions e SET tokens_total = totals.tokens, cost_total_usd = totals.cost
FROM totals WHERE (e.trace_id, e.span_id) = (totals.trace_id, totals.span_id)
"""


def test_sink_copies_settles_and_sees_only_keys_and_usage(
    database: Database, sink: psycopg.Connection[Any], rows: None
) -> None:
    assert sink.execute("SELECT current_user, row_security_active('agent_executions')").fetchall() == [
        ("spanledger_sink", False)
    ]
    sink.execute(SETTLE, (["t1", "t2"],))
    sink.execute(SETTLE_TOTALS, {"traces": ["t1", "t2"]})
    sink.commit()

    totals = "SELECT span_id, tokens_used, tokens_total, cost_usd, cost_total_usd FROM agent_executions ORDER BY 1"
    assert sink.execute(totals).fetchall() == [
        ("a1", 30, 42, 3, 3),
        ("a2", 12, 12, None, None),
        ("b1", 0, 0, None, None),
    ]
    for statement in (
        "SELECT input_data FROM agent_executions",
        "SELECT output_data FROM execution_steps",
        "SELECT user_id FROM agent_executions",
        "UPDATE agent_executions SET status = 'failure'",
        "DELETE FROM agent_executions",
        "TRUNCATE execution_steps",
        f"SELECT trace_id FROM agent_executions_{TODAY}",
        f"INSERT INTO execution_steps_{TODAY} DEFAULT VALUES",
        "SELECT * FROM grafana_executions",
        "CREATE TEMP TABLE staged (LIKE agent_executions)",  # wants SELECT on all columns, STAGE does not
    ):
        assert refused(sink, statement), statement


def test_replay_through_a_temporary_table_adds_nothing(sink: psycopg.Connection[Any], rows: None) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation), sink.transaction():
        copy(sink, "agent_executions", EXECUTIONS)

    new = {**EXECUTION, "span_id": "new"}
    sink.execute(STAGE.encode())
    copy(sink, "agent_executions", [*EXECUTIONS, new], target="staged")
    assert sink.execute(UNSTAGE.encode()).fetchall() == [("t1", "new")]


def test_sink_bound_by_row_level_security_loads_without_copy(bound_sink: psycopg.Connection[Any]) -> None:
    active = "SELECT row_security_active('agent_executions'), row_security_active('execution_steps')"
    assert bound_sink.execute(active).fetchall() == [(True, True)]
    with pytest.raises(FeatureNotSupported), bound_sink.transaction():
        copy(bound_sink, "agent_executions", EXECUTIONS)

    bound_sink.execute(STAGE.encode())
    copy(bound_sink, "agent_executions", EXECUTIONS, target="staged")
    assert bound_sink.execute(UNSTAGE.encode()).fetchall() == [("t1", "a1"), ("t1", "a2"), ("t2", "b1")]
    assert bound_sink.execute(UNSTAGE.encode()).fetchall() == []
    steps = STAGE.replace("staged", "staged_steps").replace("agent_executions", "execution_steps")
    bound_sink.execute(steps.encode())
    copy(bound_sink, "execution_steps", STEPS, target="staged_steps")
    bound_sink.execute("INSERT INTO execution_steps SELECT * FROM staged_steps ON CONFLICT DO NOTHING")
    bound_sink.execute(SETTLE, (["t1", "t2"],))
    bound_sink.execute(SETTLE_TOTALS, {"traces": ["t1", "t2"]})

    totals = "SELECT span_id, tokens_used, tokens_total FROM agent_executions ORDER BY span_id"
    assert bound_sink.execute(totals).fetchall() == [("a1", 30, 42), ("a2", 12, 12), ("b1", 0, 0)]


def test_admin_reads_everything_and_writes_nothing(database: Database, rows: None) -> None:
    with database.connect("spanledger_admin") as connection:
        seen = connection.execute(text("SELECT span_id, user_id, input_data FROM agent_executions ORDER BY 1"))
        assert seen.all() == [("a1", "ann", '"secret"'), ("a2", "ann", '"secret"'), ("b1", "bob", '"secret"')]
        assert connection.scalar(text("SELECT count(*) FROM execution_steps")) == 3
        assert connection.scalar(text("SELECT count(*) FROM grafana_steps")) == 3
    for statement in (
        "UPDATE agent_executions SET cost_usd = 0",
        "DELETE FROM execution_steps",
        f"SELECT * FROM agent_executions_{TODAY}",
        "CREATE TABLE mine (a int)",
    ):
        with (
            pytest.raises(ProgrammingError, match="permission denied"),
            database.connect("spanledger_admin") as c,
        ):
            c.execute(text(statement))


@pytest.mark.parametrize(
    ("user_id", "spans"),
    [("ann", ["a1", "a2", "s1", "s2"]), ("bob", ["b1", "s3"]), ("' OR 'a'='a", []), ("", []), (None, [])],
)
def test_reader_sees_only_the_users_own_rows(
    database: Database, rows: None, user_id: str | None, spans: list[str]
) -> None:
    query = text("SELECT span_id FROM agent_executions UNION SELECT span_id FROM execution_steps ORDER BY 1")
    with database.connect("spanledger_reader", user_id="ann") as connection:
        connection.execute(query)  # the pooled connection keeps nothing of it
    with database.connect("spanledger_reader", user_id=user_id) as connection:
        assert connection.execute(query).scalars().all() == spans


@pytest.mark.parametrize(
    "statement",
    [
        f"SELECT * FROM agent_executions_{TODAY}",
        f"SELECT * FROM execution_steps_{TODAY}",
        "INSERT INTO agent_executions (trace_id) VALUES ('x')",
        "DELETE FROM agent_executions",
        "SELECT * FROM grafana_executions",
        "SELECT spanledger_ensure_partitions(CURRENT_DATE)",
    ],
)
def test_reader_may_do_nothing_else(database: Database, rows: None, statement: str) -> None:
    with (
        pytest.raises(ProgrammingError, match="permission denied"),
        database.connect("spanledger_reader", user_id="ann") as connection,
    ):
        connection.execute(text(statement))


def test_grafana_sees_views_without_payloads_and_users(database: Database, rows: None) -> None:
    with database.connect("spanledger_grafana") as connection:
        executions = connection.execute(text("SELECT * FROM grafana_executions ORDER BY span_id"))
        steps = connection.execute(text("SELECT * FROM grafana_steps ORDER BY span_id"))
        hidden = {"input_data", "output_data", "error_message", "attributes"}
        assert set(executions.keys()) == set(agent_executions.columns.keys()) - hidden
        assert set(steps.keys()) == set(execution_steps.columns.keys()) - hidden
        # printf ann | sha256sum
        ann = "49915e0d7d4b402e3017d010bc1c0e83cac6c797d6c16e66340fe3268693a6a1"
        assert [(row.span_id, row.user_id == ann) for row in executions] == [
            ("a1", True),
            ("a2", True),
            ("b1", False),
        ]
        assert [(row.span_id, row.user_id == ann) for row in steps] == [
            ("s1", True),
            ("s2", True),
            ("s3", False),
        ]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT trace_id FROM agent_executions",
        "SELECT trace_id FROM execution_steps",
        f"SELECT trace_id FROM agent_executions_{TODAY}",
        "DELETE FROM grafana_executions",
        "SELECT spanledger_ensure_partitions(CURRENT_DATE)",
    ],
)
def test_grafana_may_do_nothing_else(database: Database, statement: str) -> None:
    with (
        pytest.raises(ProgrammingError, match="permission denied"),
        database.connect("spanledger_grafana") as connection,
    ):
        connection.execute(text(statement))


def test_sink_makes_partitions_in_range_only(sink: psycopg.Connection[Any]) -> None:
    ensure = "SELECT spanledger_ensure_partitions(%s::date, %s)"
    far = NOW.date() - timedelta(days=399)

    assert sink.execute(ensure, (far, 2)).fetchone() == (4,)
    assert sink.execute(ensure, (far, 2)).fetchone() == (0,)
    old = {**EXECUTION, "span_id": "old", "created_at": NOW - timedelta(days=399)}
    copy(sink, "agent_executions", [old])
    for first_day, days in (
        (NOW.date() - timedelta(days=402), 1),
        (NOW.date() + timedelta(days=9), 1),
        (NOW.date(), 10),
        (NOW.date(), 0),
        (NOW.date(), None),
        (None, 1),
        ("infinity", 1),
        ("-infinity", 1),
    ):
        with pytest.raises(InvalidParameterValue, match="no partitions for"), sink.transaction():
            sink.execute(ensure, (first_day, days))
