from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import orjson
import pytest

from app.database import Database
from app.schemas import Execution, ExecutionDetail, ExecutionPage, Step
from app.tables import agent_executions, execution_steps
from tests.app.admin_client import get
from tests.app.rows import NOW, TRACE, Rows, as_json, writing

SPAN = "b7ad6b7169203331"


@pytest.fixture
def rows(database: Database) -> Iterator[Rows]:
    with writing(database) as rows:
        yield rows


async def listed(database: Database, query: str) -> list[str]:
    answer = await get(database, f"/api/admin/executions?{query}")
    assert answer.status_code == 200, answer.text
    return [row["span_id"] for row in answer.json()["data"]]


def test_the_schemas_have_the_columns_of_the_tables() -> None:
    assert set(Execution.model_fields) == set(agent_executions.c.keys())
    assert set(Step.model_fields) == set(execution_steps.c.keys())
    assert list(Execution.model_json_schema()["required"]) == list(Execution.model_fields)


@pytest.mark.anyio
async def test_a_page_has_the_columns_of_the_table(database: Database, rows: Rows) -> None:
    row = rows.execution(
        created_at=NOW.replace(microsecond=7),
        attributes='{"variant":"b","n":1.50}',
        input_data='{"content":"Gruß"}',
        output_data="[1,2]",
        cost_usd=Decimal("0.00345"),
        cost_total_usd=Decimal("0.00345"),
        cost_source="local",
        tokens_used=1020,
        session_id="s1",
    )
    answer = await get(database, "/api/admin/executions")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {
        "data": [
            as_json(
                row,
                attributes={"variant": "b", "n": 1.5},
                input_data={"content": "Gruß"},
                output_data=[1, 2],
                cost_usd=0.00345,
                cost_total_usd=0.00345,
            )
        ],
        "next_cursor": None,
    }
    assert answer.json()["data"][0]["created_at"] == "2026-03-10T12:00:00.000007Z"
    assert list(answer.json()["data"][0]) == agent_executions.c.keys()
    ExecutionPage.model_validate(answer.json(), extra="forbid")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (None, b"null"),
        ("null", b"null"),
        ('"text"', b'"text"'),
        ("12345678901234567890.10", b"12345678901234567890.10"),
        ("[" * 1024 + "]" * 1024, b"[" * 1024 + b"]" * 1024),
        ('{"a":1,"a":2}', b'{"a":1,"a":2}'),
        ("", b'""'),
        ("not JSON", b'"not JSON"'),
        ('{"cut', b'"{\\"cut"'),
        ("NaN", b'"NaN"'),
        ("1e999", b'"1e999"'),
        ("[" * 1025 + "]" * 1025, b'"' + b"[" * 1025 + b"]" * 1025 + b'"'),
    ],
    ids=lambda value: str(value)[:16],
)
async def test_a_payload_is_shown_as_it_was_stored(
    database: Database, rows: Rows, stored: str | None, shown: bytes
) -> None:
    rows.execution(span_id=SPAN, output_data=stored)
    for path in ("", f"/{TRACE}/{SPAN}"):
        answer = await get(database, f"/api/admin/executions{path}")
        assert b'"output_data":' + shown + (b"}" if not path else b",") in answer.content


@pytest.mark.anyio
async def test_attributes_may_hold_any_number(database: Database, rows: Rows) -> None:
    rows.execution(attributes='{"n": 123456789012345678901234567890}')
    answer = await get(database, "/api/admin/executions")
    assert b'"attributes":{"n": 123456789012345678901234567890}' in answer.content


@pytest.mark.anyio
async def test_filters_come_from_the_url(database: Database, rows: Rows) -> None:
    at = NOW - timedelta(hours=1)
    a = rows.execution(agent_name="a", status="failure", created_at=at)["span_id"]
    b = rows.execution(agent_name="b", status="timeout", created_at=at - timedelta(hours=1))["span_id"]
    c = rows.execution(agent_name="c", trace_id="f" * 32, created_at=at - timedelta(hours=2))["span_id"]
    rows.execution(created_at=NOW - timedelta(days=35, microseconds=1))
    assert await listed(database, "") == [a, b, c]
    assert await listed(database, "agent=a&agent=c") == [a, c]
    assert await listed(database, "status=failure,timeout") == [a, b]
    assert await listed(database, "status=failure&status=timeout") == [a, b]
    assert await listed(database, f"trace_id={'F' * 32}") == [c]
    assert await listed(database, "from=2026-03-10T10:00:00Z&to=2026-03-10T11:00:00Z") == [b]
    assert await listed(database, "from=2026-03-10T12:00:00+02:00&to=2026-03-10T12:00:00%2B01:00") == [b]
    assert await listed(database, "from=2020-01-01T00:00:00Z") == [a, b, c]
    assert await listed(database, "limit=1") == [a]


@pytest.mark.anyio
async def test_pages_follow_each_other_by_cursor(database: Database, rows: Rows) -> None:
    expected = [rows.execution(created_at=NOW - timedelta(seconds=n))["span_id"] for n in range(1, 6)]
    found: list[str] = []
    cursor = ""
    while True:
        answer = (await get(database, f"/api/admin/executions?user_id=u1&limit=2{cursor}")).json()
        found += [row["span_id"] for row in answer["data"]]
        rows.execution(created_at=NOW)
        if answer["next_cursor"] is None:
            break
        cursor = f"&cursor={answer['next_cursor']}"
    assert found == expected


@pytest.mark.anyio
async def test_a_cursor_of_another_list_is_a_problem(database: Database, rows: Rows) -> None:
    for _ in range(2):
        rows.execution()
    cursor = (await get(database, "/api/admin/executions?limit=1")).json()["next_cursor"]
    for query in (f"user_id=u1&cursor={cursor}", f"cursor={cursor[:-1]}", "cursor=", "cursor=x%00"):
        answer = await get(database, f"/api/admin/executions?{query}")
        assert answer.status_code == 400, query
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"].startswith("The cursor does not belong to this list.")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("agnet=a", "query.agnet"),
        ("status=failed", "query.status.0"),
        ("status=failure,failed", "query.status.1"),
        ("limit=501", "query.limit"),
        ("from=yesterday", "query.from"),
        ("to=2026-03-10", "query.to"),
        ("trace_id=1", "query.trace_id"),
        ("user_id=a%00b", "query.user_id"),
    ],
)
async def test_a_wrong_filter_is_named(database: Database, query: str, field: str) -> None:
    answer = await get(database, f"/api/admin/executions?{query}")
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


@pytest.mark.anyio
async def test_one_execution_with_its_steps_and_children(database: Database, rows: Rows) -> None:
    row = rows.execution(span_id=SPAN, input_data='{"a":1}')
    step = rows.step(
        agent_span_id=SPAN, input_tokens=900, output_tokens=120, cost_usd=Decimal("0.1"), input_data='["hi"]'
    )
    child = rows.execution(parent_agent_span_id=SPAN, agent_name="quiz")
    answer = await get(database, f"/api/admin/executions/{TRACE.upper()}/{SPAN.upper()}")
    body: dict[str, Any] = answer.json()
    ExecutionDetail.model_validate(body, extra="forbid")
    (shown,) = body.pop("children")
    assert (shown["span_id"], shown["agent_name"]) == (child["span_id"], "quiz")
    assert body == as_json(
        row,
        input_data={"a": 1},
        steps=[as_json(step, cost_usd=0.1, input_data=["hi"])],
        truncated=False,
    )
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.anyio
async def test_an_execution_that_is_not_stored_may_come(database: Database) -> None:
    answer = await get(database, f"/api/admin/executions/{TRACE}/{SPAN}")
    assert answer.status_code == 404
    assert answer.headers["cache-control"] == "no-store"
    assert "may still be in the spool: try again" in answer.json()["detail"]
    assert f"GET /api/admin/executions?trace_id={TRACE}" in answer.json()["detail"]


@pytest.mark.anyio
@pytest.mark.parametrize("ids", [f"{TRACE}/1", f"{TRACE}1/{SPAN}", f"{'g' * 32}/{SPAN}", f"{TRACE}/{SPAN}%0A"])
async def test_ids_are_hex_digits(database: Database, ids: str) -> None:
    answer = await get(database, f"/api/admin/executions/{ids}")
    assert answer.status_code == 422
    assert orjson.loads(answer.content)["errors"][0]["field"].startswith("path.")
