from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from app import openapi
from app.database import Database
from app.schemas import ErrorsAnswer, ExecutionDetail, ExecutionPage, MetricsAnswer, RejectedPage, UserActivityAnswer
from tests.app.admin_client import TOKEN, get, service
from tests.app.rows import NOW, Rows, as_json, writing

PATHS = (
    "/api/admin/metrics",
    "/api/admin/errors",
    "/api/admin/user-activity/u1",
    "/api/admin/executions",
    f"/api/admin/executions/{'a' * 32}/{'b' * 16}",
)
USER = "18717267-0855-433c-b160-04c3443daa80"


@pytest.fixture
def rows(database: Database) -> Iterator[Rows]:
    with writing(database) as rows:
        yield rows


def summary(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The row as `errors` and `user-activity` show it."""
    return {name: as_json(row, **changes)[name] for name in openapi.SUMMARY}


@pytest.mark.anyio
async def test_the_metrics_of_the_seed(database: Database, rows: Rows) -> None:
    """Four requests out of five succeed, in 2.5 s each, with 1500 tokens: the seed's very numbers."""
    for number, status in enumerate(("success", "success", "failure", "success", "success")):
        rows.execution(
            status=status, execution_time_ms=2000.0 + 250 * number, tokens_used=300, cost_usd=Decimal("0.00102")
        )
    answer = await get(database, f"/api/admin/metrics?hours=24&admin_token={TOKEN}", token=None)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {
        "status": "success",
        "metrics": {
            "total_requests": 5,
            "successful": 4,
            "failed": 1,
            "cancelled": 0,
            "rejected": 0,
            "success_rate": 0.8,
            "avg_execution_time_ms": 2500,
            "total_tokens_used": 1500,
            "cost_usd": 0.0051,
            "cost_complete": True,
            "agent_metrics": {
                "main_orchestrator": {
                    "count": 5,
                    "avg_time_ms": 2500,
                    "success_rate": 0.8,
                    "total_tokens": 1500,
                    "own_tokens": 1500,
                    "cancelled": 0,
                    "rejected": 0,
                    "cost_usd": 0.0051,
                }
            },
        },
    }
    MetricsAnswer.model_validate(answer.json(), extra="forbid")


@pytest.mark.anyio
async def test_hours_bound_the_metrics_and_are_24_by_default(database: Database, rows: Rows) -> None:
    for hours in (0.5, 1.5, 23.5, 24.5, 24 * 35, 24 * 35 + 0.1):
        rows.execution(created_at=NOW - timedelta(hours=hours))
    counts = {}
    for query in ("", "?hours=1", "?hours=2", "?hours=8760"):
        answer = await get(database, f"/api/admin/metrics{query}")
        counts[query] = answer.json()["metrics"]["total_requests"]
    assert counts == {"": 3, "?hours=1": 1, "?hours=2": 2, "?hours=8760": 5}, "older than RETENTION_DAYS does not count"


@pytest.mark.anyio
async def test_numbers_keep_every_digit(database: Database, rows: Rows) -> None:
    rows.execution(tokens_used=9_007_199_254_740_993, cost_usd=Decimal("12345678.000000000000000001"))
    rows.execution(tokens_used=1 << 62, tokens_total=(1 << 63) - 1)
    rows.execution(tokens_used=1 << 62, tokens_total=(1 << 63) - 1)
    text = (await get(database, "/api/admin/metrics")).text
    assert '"total_tokens_used":9232379236109516801,' in text
    assert '"total_tokens":18455751272964292607,' in text
    assert '"cost_usd":12345678.000000000000000001,' in text


@pytest.mark.anyio
async def test_errors_are_the_failed_executions_newest_first(database: Database, rows: Rows) -> None:
    at = NOW - timedelta(hours=1)
    failures = [
        rows.execution(
            status=status,
            created_at=at - timedelta(minutes=number),
            error_type="ValueError",
            error_message="no cards in the answer",
            input_data='{"count":3}',
            parent_agent_span_id="c" * 16 if status == "timeout" else None,
        )
        for number, status in enumerate(("failure", "timeout", "crashed"))
    ]
    for status in ("success", "cancelled", "rejected"):
        rows.execution(status=status)
    rows.execution(status="failure", created_at=NOW - timedelta(days=36))
    answer = await get(database, f"/api/admin/errors?limit=10&admin_token={TOKEN}", token=None)
    assert answer.json() == {
        "status": "success",
        "errors": [summary(row, input_data={"count": 3}) for row in failures],
        "count": 3,
    }
    ErrorsAnswer.model_validate(answer.json(), extra="forbid")
    two = (await get(database, "/api/admin/errors?limit=2")).json()
    assert (two["count"], [row["status"] for row in two["errors"]]) == (2, ["failure", "timeout"])


@pytest.mark.anyio
async def test_ten_errors_and_twenty_activities_by_default(database: Database, rows: Rows) -> None:
    for _ in range(25):
        rows.execution(status="failure")
    assert (await get(database, "/api/admin/errors")).json()["count"] == 10
    assert (await get(database, "/api/admin/user-activity/u1")).json()["count"] == 20


@pytest.mark.anyio
async def test_the_activity_of_a_user(database: Database, rows: Rows) -> None:
    at = NOW - timedelta(days=2)
    root = rows.execution(
        user_id=USER, created_at=at, tokens_total=1020, session_id="s1", output_data='["a card"]', span_id="a" * 16
    )
    nested = rows.execution(
        user_id=USER,
        agent_name="flashcard_generation",
        created_at=at - timedelta(milliseconds=1),
        parent_agent_span_id="a" * 16,
        tokens_used=1020,
        cost_usd=Decimal("0.00345"),
        model_used="gpt-4o",
    )
    rows.execution(user_id="another")
    url = f"/api/admin/user-activity/{USER}?limit=20&admin_token={TOKEN}"
    answer = await get(database, url, token=None)
    assert answer.json() == {
        "status": "success",
        "user_id": USER,
        "summary": {
            "total_requests": 1,
            "successful": 1,
            "failed": 0,
            "cancelled": 0,
            "rejected": 0,
            "success_rate": 1.0,
            "avg_execution_time_ms": 1000.0,
            "total_tokens_used": 1020,
            "cost_usd": 0.00345,
            "cost_complete": True,
        },
        "activity": [summary(root, output_data=["a card"]), summary(nested, cost_usd=0.00345)],
        "count": 2,
    }
    UserActivityAnswer.model_validate(answer.json(), extra="forbid")


@pytest.mark.anyio
async def test_a_user_of_whom_nothing_is_known_has_no_activity(database: Database) -> None:
    answer = await get(database, "/api/admin/user-activity/nobody%20%C3%BC%27%3B--")
    assert answer.status_code == 200
    assert (answer.json()["user_id"], answer.json()["activity"]) == ("nobody ü';--", [])


@pytest.mark.anyio
@pytest.mark.parametrize("path", PATHS)
async def test_every_path_wants_a_token_before_anything_else(path: str) -> None:
    database = Database("postgresql://127.0.0.1:1/away")
    for url in (path, f"{path}?limit=no-number"):
        answer = await get(database, url, token="wrong")
        assert (answer.status_code, answer.headers["cache-control"]) == (403, "no-store")
    database.dispose()


@pytest.mark.anyio
@pytest.mark.parametrize("path", PATHS)
async def test_a_database_that_is_away_is_503_with_the_time_to_come_back(path: str) -> None:
    database = Database("postgresql://127.0.0.1:1/away")
    answer = await get(database, path)
    database.dispose()
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.headers["retry-after"], answer.headers["cache-control"]) == ("5", "no-store")
    assert answer.json()["title"] == "Service Unavailable"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("/api/admin/metrics?hours=0", "query.hours"),
        ("/api/admin/metrics?hours=8761", "query.hours"),
        ("/api/admin/metrics?hours=1.5", "query.hours"),
        ("/api/admin/metrics?hours=", "query.hours"),
        ("/api/admin/errors?limit=0", "query.limit"),
        ("/api/admin/errors?limit=501", "query.limit"),
        ("/api/admin/user-activity/u1?limit=-1", "query.limit"),
        ("/api/admin/user-activity/u%001", "path.user_id"),
    ],
)
async def test_values_out_of_range_are_named(database: Database, url: str, field: str) -> None:
    answer = await get(database, url)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_openapi_documents_every_answer_with_a_valid_example() -> None:
    database = Database("postgresql://127.0.0.1:1/away")
    paths = service(database).openapi()["paths"]
    models: dict[str, tuple[type[BaseModel], dict[str, Any], set[str]]] = {
        "/api/admin/metrics": (MetricsAnswer, openapi.METRICS, set()),
        "/api/admin/errors": (ErrorsAnswer, openapi.ERRORS, set()),
        "/api/admin/user-activity/{user_id}": (UserActivityAnswer, openapi.USER_ACTIVITY, set()),
        "/api/admin/executions": (ExecutionPage, openapi.EXECUTIONS, {"400"}),
        "/api/admin/executions/{trace_id}/{span_id}": (ExecutionDetail, openapi.EXECUTION, {"404"}),
        "/api/admin/rejected": (RejectedPage, openapi.REJECTED, {"400"}),
    }
    assert set(paths) == set(models)
    for path, (model, example, problems) in models.items():
        operation = paths[path]["get"]
        assert operation["summary"]
        assert operation["description"]
        assert set(operation["responses"]) == {"200", "403", "422", "503"} | problems
        content = operation["responses"]["200"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{model.__name__}"}
        model.model_validate_json(orjson.dumps(example), extra="forbid")
        assert set(content["example"]) == {name for name, value in example.items() if value is not None}
        for status, problem in operation["responses"].items():
            if status != "200":
                assert list(problem["content"]) == ["application/problem+json"]
        assert all(parameter.get("description") for parameter in operation.get("parameters", ())), path
