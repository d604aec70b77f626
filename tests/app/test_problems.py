from __future__ import annotations

from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Query
from opentelemetry import trace
from pydantic import BaseModel, Field

from app import problems
from app.problems import NOT_JSON, NOT_UTF8, Problem


class Options(BaseModel):
    count: int = Field(ge=1, le=50)


class Body(BaseModel):
    type: Literal["quiz", "chat"]
    options: Options


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


def service() -> FastAPI:
    app = FastAPI()
    problems.install(app)

    @app.get("/problem")
    def problem() -> None:
        raise Problem(
            429, "Too Many Requests", "Wait.", type="https://e.example/q", headers={"Retry-After": "7"}, left=0
        )

    @app.get("/http")
    def http(status: int) -> None:
        raise HTTPException(status, "as it is")

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("hunter2")

    @app.get("/limited")
    def limited(limit: Annotated[int, Query(ge=1, le=100)]) -> None: ...

    @app.post("/body")
    def body(body: Body) -> None: ...

    @app.post("/pet")
    def pet(body: Annotated[Cat | Dog, Field(discriminator="kind")]) -> None: ...

    return app


async def ask(method: str, path: str, **request: Any) -> tuple[int, dict[str, Any]]:
    """Status and problem of a request made inside a span."""
    transport = httpx.ASGITransport(service(), raise_app_exceptions=False)
    span = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with trace.use_span(span):
            answer = await client.request(method, path, **request)
    assert answer.headers["content-type"] == "application/problem+json"
    content: dict[str, Any] = answer.json()
    assert content.pop("trace_id") == f"{1:032x}"
    assert content.pop("status") == answer.status_code
    return answer.status_code, content


@pytest.mark.anyio
async def test_a_problem_has_its_members_and_headers() -> None:
    assert await ask("GET", "/problem") == (
        429,
        {"type": "https://e.example/q", "title": "Too Many Requests", "detail": "Wait.", "left": 0},
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service()), base_url="http://test") as client:
        answer = await client.get("/problem")
    assert answer.headers["retry-after"] == "7"
    assert "trace_id" not in answer.json()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "status", "title", "detail"),
    [
        ("GET", "/nowhere", 404, "Not Found", "Nothing is served at this path; /docs lists what is."),
        ("POST", "/problem", 405, "Method Not Allowed", "POST is not allowed at this path; allowed: GET."),
        ("GET", "/http?status=409", 409, "Conflict", "as it is"),
    ],
)
async def test_errors_of_the_framework_are_problems(
    method: str, path: str, status: int, title: str, detail: str
) -> None:
    assert await ask(method, path) == (status, {"type": "about:blank", "title": title, "detail": detail})


@pytest.mark.anyio
async def test_an_answer_that_has_no_body_stays_without() -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service()), base_url="http://test") as client:
        answer = await client.get("/http?status=304")
    assert (answer.status_code, answer.content) == (304, b"")


@pytest.mark.anyio
async def test_an_unhandled_error_says_nothing_but_where_to_look(caplog: pytest.LogCaptureFixture) -> None:
    assert await ask("GET", "/broken") == (
        500,
        {
            "type": "about:blank",
            "title": "Internal Server Error",
            "detail": "An error inside the service. Its log holds the details under this trace_id and request_id.",
        },
    )
    (record,) = caplog.records
    assert record.getMessage() == "unhandled error in GET /broken"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "hunter2"


def unprocessable(detail: str, *errors: dict[str, str]) -> tuple[int, dict[str, Any]]:
    members = {"type": "about:blank", "title": "Unprocessable Content", "detail": detail}
    return 422, {**members, "errors": list(errors)}


@pytest.mark.anyio
async def test_wrong_fields_are_named_with_what_is_allowed() -> None:
    assert await ask("POST", "/body", json={"type": "hunter2", "options": {"count": 99}}) == unprocessable(
        "body.type: Input should be 'quiz' or 'chat'; body.options.count: Input should be less than or equal to 50",
        {"field": "body.type", "message": "Input should be 'quiz' or 'chat'", "allowed": "'quiz' or 'chat'"},
        {
            "field": "body.options.count",
            "message": "Input should be less than or equal to 50",
            "allowed": "at most 50",
        },
    )
    assert await ask("GET", "/limited?limit=0") == unprocessable(
        "query.limit: Input should be greater than or equal to 1",
        {
            "field": "query.limit",
            "message": "Input should be greater than or equal to 1",
            "allowed": "at least 1",
        },
    )
    assert await ask("POST", "/body", json={}) == unprocessable(
        "body.type: Field required; body.options: Field required",
        {"field": "body.type", "message": "Field required"},
        {"field": "body.options", "message": "Field required"},
    )


@pytest.mark.anyio
async def test_what_was_sent_is_never_sent_back() -> None:
    assert await ask("POST", "/pet", json={"kind": "hunter2" * 1000}) == unprocessable(
        "body.kind: unknown value", {"field": "body.kind", "message": "unknown value", "allowed": "'cat', 'dog'"}
    )


@pytest.mark.anyio
async def test_a_body_that_is_not_json_says_where_it_breaks() -> None:
    assert await ask(
        "POST", "/body", content=b'{"type": }', headers={"Content-Type": "application/json"}
    ) == unprocessable(
        "body: not valid JSON at character 9: Expecting value",
        {"field": "body", "message": "not valid JSON at character 9: Expecting value"},
    )


@pytest.mark.anyio
async def test_a_body_of_powershell_that_is_not_utf8_gets_advice() -> None:
    content = '{"type": "Übung"}'.encode("latin-1")
    assert await ask("POST", "/body", content=content, headers={"Content-Type": "application/json"}) == (
        400,
        {"type": "about:blank", "title": "Bad Request", "detail": NOT_UTF8},
    )


@pytest.mark.anyio
async def test_a_body_without_its_content_type_gets_advice() -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert await ask("POST", "/body", content=b'{"type": "quiz"}', headers=form) == (
        415,
        {"type": "about:blank", "title": "Unsupported Media Type", "detail": NOT_JSON},
    )
