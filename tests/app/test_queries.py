from __future__ import annotations

import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from sqlalchemy import event

from app import queries
from app.database import Database
from app.problems import Problem
from app.schemas import FAILED, ExecutionFilters, Status, parse_time
from app.tables import agent_executions
from telemetry.semconv import Status as TelemetryStatus
from tests.app.rows import NOW, TRACE, Rows, writing

DAY = timedelta(days=1)
AWAY = "postgresql://spanledger:hunter2@127.0.0.1:1/spanledger"


@pytest.fixture
def rows(database: Database) -> Iterator[Rows]:
    with writing(database) as rows:
        yield rows


def metrics(database: Database, since: datetime = NOW - DAY) -> Any:
    with queries.reading(database) as connection:
        return queries.metrics(connection, since)


def filters_of(**filters: Any) -> ExecutionFilters:
    return ExecutionFilters.model_validate(filters)


def listed(database: Database, **filters: Any) -> list[str]:
    """The span ids of one page."""
    with queries.reading(database) as connection:
        page = queries.executions(connection, filters_of(**filters), NOW - 35 * DAY)
    return [row["span_id"] for row in page.rows]


def test_the_statuses_are_those_of_the_rows() -> None:
    assert list(get_args(Status)) == list(TelemetryStatus)
    assert FAILED == ("failure", "timeout", "crashed")


def test_metrics_without_any_row_are_zero_and_unknown(database: Database) -> None:
    assert metrics(database) == {
        "total_requests": 0,
        "successful": 0,
        "failed": 0,
        "cancelled": 0,
        "rejected": 0,
        "success_rate": None,
        "avg_execution_time_ms": None,
        "total_tokens_used": 0,
        "cost_usd": None,
        "cost_complete": True,
        "agent_metrics": {},
    }


def test_metrics_count_requests_and_each_agents_executions(database: Database, rows: Rows) -> None:
    """Requests of every status, and a nested agent that fails where its caller does not."""
    cost = Decimal("0.000000000000000000000123")
    root = rows.execution(tokens_used=0, tokens_total=900, execution_time_ms=4000.0)
    rows.execution(
        agent_name="quiz",
        parent_agent_span_id=root["span_id"],
        status="timeout",
        tokens_used=900,
        execution_time_ms=3000.0,
        cost_usd=cost,
    )
    rows.execution(status="success", tokens_used=10, execution_time_ms=1000.0)
    rows.execution(status="failure", tokens_used=5, cost_usd=Decimal("1.5"), execution_time_ms=100.0)
    rows.execution(status="timeout", execution_time_ms=200.0)
    rows.execution(status="crashed", execution_time_ms=300.0)
    rows.execution(status="cancelled", tokens_used=7, execution_time_ms=50_000.0)
    rows.execution(status="rejected", execution_time_ms=0.0)
    rows.execution(agent_name="chat", status="cancelled")
    assert metrics(database) == {
        "total_requests": 5,
        "successful": 2,
        "failed": 3,
        "cancelled": 2,
        "rejected": 1,
        "success_rate": 0.4,
        "avg_execution_time_ms": 1120.0,
        "total_tokens_used": 922,
        "cost_usd": Decimal("1.5") + cost,
        "cost_complete": False,
        "agent_metrics": {
            "chat": {
                "count": 0,
                "avg_time_ms": None,
                "success_rate": None,
                "total_tokens": 0,
                "own_tokens": 0,
                "cancelled": 1,
                "rejected": 0,
                "cost_usd": None,
            },
            "main_orchestrator": {
                "count": 5,
                "avg_time_ms": 1120.0,
                "success_rate": 0.4,
                "total_tokens": 922,
                "own_tokens": 22,
                "cancelled": 1,
                "rejected": 1,
                "cost_usd": Decimal("1.5"),
            },
            "quiz": {
                "count": 1,
                "avg_time_ms": 3000.0,
                "success_rate": 0.0,
                "total_tokens": 900,
                "own_tokens": 900,
                "cancelled": 0,
                "rejected": 0,
                "cost_usd": cost,
            },
        },
    }


def test_metrics_agree_with_a_plain_count_of_random_rows(database: Database, rows: Rows) -> None:
    chance = random.Random(7)
    made: list[dict[str, Any]] = []
    for _ in range(200):
        nested = made and chance.random() < 0.5
        made.append(
            rows.execution(
                agent_name=chance.choice("abc"),
                status=chance.choice(list(TelemetryStatus)).value,
                parent_agent_span_id=chance.choice(made)["span_id"] if nested else None,
                tokens_used=chance.randrange(1 << 62),
                execution_time_ms=float(chance.randrange(100_000)),
                cost_usd=chance.choice([None, Decimal(chance.randrange(10**9)).scaleb(-9)]),
                created_at=NOW - timedelta(minutes=chance.randrange(60 * 48)),
            )
        )
    inside = [row for row in made if row["created_at"] >= NOW - DAY]
    requests = [row for row in inside if row["is_root"]]
    ended = [row for row in requests if row["status"] in ("success", *FAILED)]
    found = metrics(database)
    assert found["total_requests"] == found["successful"] + found["failed"] == len(ended)
    assert found["successful"] == sum(row["status"] == "success" for row in requests)
    assert found["cancelled"] == sum(row["status"] == "cancelled" for row in requests)
    assert found["rejected"] == sum(row["status"] == "rejected" for row in requests)
    assert found["avg_execution_time_ms"] == sum(row["execution_time_ms"] for row in ended) / len(ended)
    assert found["total_tokens_used"] == sum(row["tokens_used"] for row in inside)
    assert found["total_tokens_used"] == sum(agent["own_tokens"] for agent in found["agent_metrics"].values())
    assert found["cost_usd"] == sum(row["cost_usd"] or 0 for row in inside)
    assert found["cost_complete"] is False


@pytest.mark.parametrize(
    ("row", "complete"),
    [
        ({}, True),
        ({"tokens_used": 5, "cost_usd": 0, "cost_source": "provider"}, True),
        ({"tokens_used": 5, "cost_usd": 1, "cost_source": "mixed"}, True),
        ({"tokens_used": 5, "cost_usd": 1, "cost_source": "partial"}, False),
        ({"tokens_used": 5, "cost_usd": None, "cost_source": "unknown"}, False),
        ({"tokens_used": 5, "cost_usd": None, "cost_source": None}, False),
    ],
    ids=str,
)
def test_a_cost_is_complete_when_every_price_was_known(
    database: Database, rows: Rows, row: dict[str, Any], complete: bool
) -> None:
    rows.execution(cost_usd=1, cost_source="local", tokens_used=1)
    rows.execution(**row)
    assert metrics(database)["cost_complete"] is complete


def test_the_range_begins_with_its_first_microsecond(database: Database, rows: Rows) -> None:
    rows.execution(created_at=NOW - DAY)
    rows.execution(created_at=NOW - DAY - timedelta(microseconds=1))
    rows.execution(created_at=NOW + timedelta(minutes=59))  # a clock that is ahead
    assert metrics(database)["total_requests"] == 2


def test_each_filter_lets_only_its_rows_pass(database: Database, rows: Rows) -> None:
    at = NOW - timedelta(minutes=1)
    microsecond = timedelta(microseconds=1)
    a = rows.execution(agent_name="a,b", user_id="u2", session_id="s", created_at=at)["span_id"]
    b = rows.execution(agent_name="b", status="failure", trace_id="f" * 32, created_at=at - microsecond)["span_id"]
    c = rows.execution(agent_name="c", status="timeout", request_id="r9", created_at=at - DAY)["span_id"]
    assert listed(database) == [a, b, c]
    assert listed(database, agent=["a,b", "c"]) == [a, c]
    assert listed(database, status=["failure,timeout"]) == [b, c]
    assert listed(database, status=["failure", "success"]) == [a, b]
    assert listed(database, user_id="u2") == [a]
    assert listed(database, user_id="U2") == []
    assert listed(database, session_id="s") == [a]
    assert listed(database, request_id="r9") == [c]
    assert listed(database, trace_id="F" * 32) == [b]
    assert listed(database, **{"from": (at - microsecond).isoformat()}) == [a, b]
    assert listed(database, to=at.isoformat()) == [b, c]
    assert listed(database, **{"from": (at - microsecond).isoformat(), "to": at.isoformat()}) == [b]
    assert listed(database, status=["failure"], user_id="u2") == []
    assert listed(database, limit=2) == [a, b]


def test_a_cursor_is_for_its_filters_only_but_for_any_limit(database: Database, rows: Rows) -> None:
    span_ids = [rows.execution(created_at=NOW - timedelta(minutes=n))["span_id"] for n in range(1, 4)]
    with queries.reading(database) as connection:
        first = queries.executions(connection, ExecutionFilters(limit=1), NOW - DAY)
    assert listed(database, cursor=first.next_cursor, limit=500) == span_ids[1:]
    with pytest.raises(Problem, match="with the same filters"):
        listed(database, cursor=first.next_cursor, user_id="u1")


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-23T14:00:00Z", datetime(2026, 11, 23, 14, tzinfo=UTC)),
        ("2026-11-23t14:00:00.5z", datetime(2026, 11, 23, 14, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-11-23T14:00:00.123456789Z", datetime(2026, 11, 23, 14, 0, 0, 123_456, tzinfo=UTC)),
        ("2026-11-23T14:00:00+02:00", datetime(2026, 11, 23, 12, tzinfo=UTC)),
        ("2026-11-23T14:00:00 02:00", datetime(2026, 11, 23, 12, tzinfo=UTC)),
        ("2026-11-23 14:00:00-02:00", datetime(2026, 11, 23, 16, tzinfo=UTC)),
    ],
)
def test_times_are_rfc_3339_and_a_plus_may_have_become_a_space(text: str, time: datetime) -> None:
    assert parse_time(text) == time
    assert parse_time(text).tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "yesterday",
            "1764000000",
            "2026-11-23",
            "2026-11-23T14:00:00",
            "20261123T140000Z",
            "2026-11-23T14:00Z",
        ),
        *("2026-02-30T00:00:00Z", "2026-11-23T24:00:01Z", "2026-11-23T14:00:60Z", "2026-W48-1T14:00:00Z"),
        *("9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:59", "2026-11-23T14:00:00+0200"),
        *("2026-11-23T14:00:00  02:00", "2026-11-23T14:00:00Z\n", "\uff12026-11-23T14:00:00Z"),
    ],
)
def test_anything_else_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a time with its offset \(RFC 3339\), such as"):
        parse_time(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"agnet": ["a"]},
        {"status": ["failed"]},
        {"limit": 0},
        {"limit": 501},
        {"trace_id": "f" * 31},
        {"trace_id": "g" * 32},
        {"user_id": "a\0b"},
        {"agent": ["a\0b"]},
        {"user_id": "x" * 1001},
        {"from": "yesterday"},
    ],
    ids=repr,
)
def test_wrong_filters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        filters_of(**wrong)


def test_one_hour_touches_one_partition(database: Database, rows: Rows) -> None:
    """EXPLAIN of the very statement, of a page and of the page after a cursor."""
    for days in range(10):
        rows.execution(created_at=NOW - days * DAY)
    seen: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "FROM agent_executions" in statement and not statement.startswith("EXPLAIN"):
            cursor.execute(f"EXPLAIN {statement}", parameters)
            seen.append(" ".join(line for (line,) in cursor.fetchall()))

    def partitions() -> set[str]:
        return set(re.findall(r"on agent_executions_(\d{8})", seen.pop()))

    with queries.reading(database) as connection:
        event.listen(connection, "before_cursor_execute", explain)
        hour = filters_of(**{"from": "2026-03-05T11:30:00Z", "to": "2026-03-05T12:30:00Z", "limit": 1})
        assert len(queries.executions(connection, hour, NOW - 35 * DAY).rows) == 1
        assert partitions() == {"20260305"}
        everything = ExecutionFilters(limit=8)
        first = queries.executions(connection, everything, NOW - 35 * DAY)
        assert partitions() >= {f"202603{day:02}" for day in range(1, 11)}
        rest = everything.model_copy(update={"cursor": first.next_cursor})
        assert len(queries.executions(connection, rest, NOW - 35 * DAY).rows) == 2
        assert partitions() <= {"20260301", "20260302", "20260303"}
        queries.metrics(connection, NOW - timedelta(hours=1))
        assert "20260309" not in partitions()
        queries.errors(connection, NOW - timedelta(hours=1), 10)
        assert "20260309" not in partitions()
        queries.user_activity(connection, "u1", NOW - timedelta(hours=1), 10)
        assert "20260309" not in partitions()


def test_an_execution_has_its_own_steps_and_children_in_order_of_start(database: Database, rows: Rows) -> None:
    root = rows.execution(span_id="a" * 16)
    at = NOW - timedelta(minutes=2)
    late = rows.step(agent_span_id="a" * 16, started_at=at, created_at=NOW + DAY, late=True)
    early = rows.step(agent_span_id="a" * 16, started_at=at - DAY, created_at=NOW)
    child = rows.execution(parent_agent_span_id="a" * 16, started_at=at)
    first = rows.execution(parent_agent_span_id="a" * 16, started_at=at - DAY)
    rows.execution(parent_agent_span_id=child["span_id"])
    rows.step(agent_span_id=child["span_id"])
    rows.step(agent_span_id="a" * 16, trace_id="e" * 32)
    rows.execution(parent_agent_span_id="a" * 16, trace_id="e" * 32)
    with queries.reading(database) as connection:
        found = queries.execution(connection, TRACE, "a" * 16)
        missing = queries.execution(connection, "e" * 32, "a" * 16)
    assert found is not None
    assert missing is None
    assert {name: found[name] for name in agent_executions.c.keys() if name != "attributes"} == {
        name: value for name, value in root.items() if name != "attributes"
    }
    assert [step["span_id"] for step in found["steps"]] == [early["span_id"], late["span_id"]]
    assert [row["span_id"] for row in found["children"]] == [first["span_id"], child["span_id"]]
    assert found["truncated"] is False


def test_an_execution_of_very_many_steps_is_cut(
    database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "PARTS_MAX", 2)
    rows.execution(span_id="a" * 16)
    steps = [rows.step(agent_span_id="a" * 16, started_at=NOW + timedelta(seconds=n)) for n in range(3)]
    with queries.reading(database) as connection:
        found = queries.execution(connection, TRACE, "a" * 16)
    assert found is not None
    assert [step["span_id"] for step in found["steps"]] == [step["span_id"] for step in steps[:2]]
    assert found["truncated"] is True


def test_a_database_that_is_away_is_a_problem_that_names_no_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    database = Database(AWAY)
    with pytest.raises(Problem) as away, queries.reading(database):
        pass
    database.dispose()
    assert (away.value.status, away.value.title) == (503, "Service Unavailable")
    assert away.value.headers == {"Cache-Control": "no-store", "Retry-After": "5"}
    assert away.value.detail == ("The database cannot be read now. Nothing is lost: rows wait in the spool. Try again.")
    (logged,) = [record.getMessage() for record in caplog.records if record.name == "app.queries"]
    assert logged.startswith("admin request not answered: cannot use Postgres at postgresql+psycopg://spanledger:***@")
    assert "hunter2" not in caplog.text + str(away.value)


def test_a_query_that_takes_too_long_is_stopped(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "STATEMENT_TIMEOUT_SECONDS", 0.05)
    with pytest.raises(Problem) as stopped, queries.reading(database) as connection:
        connection.exec_driver_sql("SELECT pg_sleep(10)")
    assert stopped.value.status == 503
    assert stopped.value.detail == "The database took too long. Ask for a shorter range of time or fewer rows."


def test_a_database_without_tables_is_not_ready_but_a_mistake_of_ours_stays_one(database: Database, rows: Rows) -> None:
    with pytest.raises(Exception, match="does not exist"), queries.reading(database) as connection:
        connection.exec_driver_sql("SELECT no_such_column FROM agent_executions")
    rows.connection.execute("DROP TABLE agent_executions CASCADE")
    with pytest.raises(Problem) as unready:
        metrics(database)
    assert unready.value.status == 503
