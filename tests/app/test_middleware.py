from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import Receive, Scope, Send

from app import problems
from app.middleware import AdminTokenMiddleware, BodyLimitMiddleware, RequestIdMiddleware
from telemetry import bind


async def scope_after(scope: Scope) -> Scope:
    """The scope as it is once AdminTokenMiddleware has passed it on; it must be the same object."""
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    await AdminTokenMiddleware(app)(scope, nothing, nothing)
    assert seen == [scope]
    assert seen[0] is scope
    return scope


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("query", "left", "token"),
    [
        (b"hours=24&admin_token=s3cret", b"hours=24", "s3cret"),
        (b"admin_token=s3cret&hours=24", b"hours=24", "s3cret"),
        (b"a=1&admin_token=s3cret&b=%20", b"a=1&b=%20", "s3cret"),
        (b"admin_token=first&admin_token=last", b"", "last"),
        (b"%61dmin%5Ftoken=s3%63ret%2B+", b"", "s3cret+ "),
        (b"ADMIN_TOKEN=s3cret", b"", "s3cret"),
        (b"+admin_token=s3cret", b"", "s3cret"),
        (b"admin_token", b"", ""),
        (b"admin_token=a=b", b"", "a=b"),
        (b"hours=24&q=admin_token", b"hours=24&q=admin_token", None),
    ],
)
async def test_the_admin_token_leaves_the_query_string(kind: str, query: bytes, left: bytes, token: str | None) -> None:
    scope = await scope_after({"type": kind, "path": "/", "query_string": query})
    assert scope["query_string"] == left
    assert scope.get("spanledger.admin_token") == token


@pytest.mark.anyio
async def test_a_token_that_powershell_put_into_the_path_is_removed_and_not_used() -> None:
    path = "/api/admin/user-activity/=20&admin_token=s3cret"
    scope = await scope_after({"type": "http", "path": path, "raw_path": path.encode(), "query_string": b""})
    assert scope == {
        "type": "http",
        "path": "/api/admin/user-activity/=20&admin_token=",
        "raw_path": b"/api/admin/user-activity/%3D20%26admin_token%3D",
        "query_string": b"",
    }


@pytest.mark.anyio
async def test_the_lifespan_passes() -> None:
    assert await scope_after({"type": "lifespan"}) == {"type": "lifespan"}


def service() -> FastAPI:
    app = FastAPI()
    app.add_middleware(BodyLimitMiddleware, max_bytes=10)
    problems.install(app)

    @app.get("/id")
    async def bound() -> str | None:
        with bind() as caller:
            return caller.request_id

    @app.post("/body")
    async def body(request: Request, body: dict[str, int]) -> dict[str, int]:
        return body

    return app


def client() -> httpx.AsyncClient:
    transport = httpx.ASGITransport(RequestIdMiddleware(service()))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.mark.anyio
@pytest.mark.parametrize("given", ["abc-1", "00-4bf92f3577b34da6a3ce929d0e0e4736:/+=", "x" * 128])
async def test_a_request_id_is_taken_over_bound_and_sent_back(given: str) -> None:
    async with client() as http:
        answer = await http.get("/id", headers={"X-Request-ID": given})
    assert (answer.headers["x-request-id"], answer.json()) == (given, given)


@pytest.mark.anyio
@pytest.mark.parametrize("given", [None, b"", b"x" * 129, b"a b", b'a"b', b"a@b.example", b"\xe4"])
async def test_a_missing_or_strange_request_id_is_replaced(given: bytes | None) -> None:
    async with client() as http:
        answer = await http.get("/id", headers=[] if given is None else [(b"X-Request-ID", given)])
    made = answer.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert answer.json() == made


TOO_LARGE = {
    "type": "about:blank",
    "title": "Content Too Large",
    "status": 413,
    "detail": "The body is larger than 10 bytes; the setting MAX_BODY_BYTES allows no more.",
    "request_id": "r",
}


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.anyio
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused(chunked: bool) -> None:
    headers = {"Content-Type": "application/json", "X-Request-ID": "r"}
    async with client() as http:
        content = chunks(b'{"a":', b"12345}") if chunked else b'{"a":12345}'
        refused = await http.post("/body", content=content, headers=headers)
        content = chunks(b'{"a":', b"1234}") if chunked else b'{"a":1234}'
        taken = await http.post("/body", content=content, headers=headers)
    assert (refused.status_code, refused.headers["content-type"]) == (413, "application/problem+json")
    assert refused.json() == TOO_LARGE
    assert (taken.status_code, taken.json()) == (200, {"a": 1234})
