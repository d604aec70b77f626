from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from pydantic import SecretStr

from app import problems
from app.auth import HOW_TO_PASS, POWERSHELL, matches, require_admin, require_api_token
from app.middleware import AdminTokenMiddleware

OLD, NEW = "old-token-0123456789", "new-token-0123456789"


def service(api_token: str | None = None) -> FastAPI:
    app = FastAPI()
    problems.install(app)
    app.add_middleware(AdminTokenMiddleware)
    app.state.admin_tokens = (OLD, NEW)
    app.state.settings = SimpleNamespace(api_token=api_token and SecretStr(api_token))

    @app.get("/api/admin/x/{name}", dependencies=[Depends(require_admin)])
    def admin(name: str, number: int = 0) -> str:
        return "in"

    @app.get("/api/ai", dependencies=[Depends(require_api_token)])
    def ai() -> str:
        return "in"

    return app


async def get(app: FastAPI, url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(url, headers=headers)


@pytest.mark.parametrize(
    ("given", "accepted", "expected"),
    [
        ([OLD], [OLD, NEW], True),
        ([NEW], [OLD, NEW], True),
        (["wrong", NEW], [OLD, NEW], True),
        ([NEW + "x"], [OLD, NEW], False),
        ([NEW[:-1]], [OLD, NEW], False),
        ([NEW.upper()], [OLD, NEW], False),
        ([], [OLD], False),
        ([OLD], [], False),
        (["ü\udcff"], [OLD], False),
    ],
)
def test_matches(given: list[str], accepted: list[str], expected: bool) -> None:
    assert matches(given, accepted) is expected


def test_every_pair_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("app.auth.hmac.compare_digest", compare)
    assert matches([OLD, "short"], [OLD, NEW, "a much longer token than the others"])
    assert compared == [(32, 32)] * 6


@pytest.mark.anyio
@pytest.mark.parametrize("token", [OLD, NEW])
async def test_a_token_opens_in_each_of_three_ways(token: str) -> None:
    app = service()
    answers = [
        await get(app, "/api/admin/x/y", {"Authorization": f"Bearer {token}"}),
        await get(app, "/api/admin/x/y", {"Authorization": f"bearer {token}"}),
        await get(app, "/api/admin/x/y", {"X-Admin-Token": token}),
        await get(app, f"/api/admin/x/y?admin_token={token}"),
        await get(app, "/api/admin/x/y", {"Authorization": "Bearer of-a-gateway", "X-Admin-Token": token}),
        await get(app, f"/api/admin/x/y?admin_token={token}", {"Authorization": "Basic dTpw"}),
    ]
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, "in")] * 6


@pytest.mark.anyio
async def test_without_a_token_the_answer_says_how_to_pass_one() -> None:
    answer = await get(service(), "/api/admin/x/y")
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {
        "type": "about:blank",
        "title": "Forbidden",
        "status": 403,
        "detail": f"An admin token is needed. {HOW_TO_PASS}",
    }


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("/api/admin/x/y", {"Authorization": "Bearer wrong-secret"}),
        ("/api/admin/x/y", {"X-Admin-Token": "wrong-secret"}),
        ("/api/admin/x/y?admin_token=wrong-secret", {}),
        ("/api/admin/x/y?number=no-number&admin_token=wrong-secret", {}),
    ],
)
async def test_a_wrong_token_is_refused_and_nowhere_logged(
    url: str, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="app")
    answer = await get(service(), url, headers)
    assert answer.status_code == 403
    assert answer.json()["detail"] == f"The admin token is wrong. {HOW_TO_PASS}"
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("app")]
    assert logged == ["admin request refused: wrong token, GET /api/admin/x/{name} from 127.0.0.1"]
    assert "wrong-secret" not in answer.text


@pytest.mark.anyio
async def test_no_configured_token_opens_nothing() -> None:
    app = service()
    app.state.admin_tokens = ()
    assert (await get(app, "/api/admin/x/y", {"X-Admin-Token": ""})).status_code == 403
    assert (await get(app, "/api/admin/x/y?admin_token=")).status_code == 403


@pytest.mark.anyio
async def test_a_url_that_powershell_broke_is_explained(caplog: pytest.LogCaptureFixture) -> None:
    answer = await get(service(), f"/api/admin/x/=20&admin_token={OLD}")
    assert answer.status_code == 403
    assert answer.json()["detail"] == f"An admin token is needed. {POWERSHELL}"
    assert OLD not in caplog.text.replace(f"http://test/api/admin/x/=20&admin_token={OLD}", "")  # httpx's own line


@pytest.mark.anyio
async def test_the_api_token_is_asked_for_where_one_is_set() -> None:
    app = service(api_token=NEW)
    assert (await get(app, "/api/ai", {"Authorization": f"Bearer {NEW}"})).json() == "in"
    for headers in ({}, {"Authorization": f"Bearer {OLD}"}, {"Authorization": f"Basic {NEW}"}):
        answer = await get(app, "/api/ai", headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.anyio
async def test_without_an_api_token_the_agents_are_open() -> None:
    assert (await get(service(), "/api/ai")).json() == "in"


def test_openapi_declares_the_ways_to_pass_a_token() -> None:
    document: dict[str, Any] = service().openapi()
    schemes = {
        name: (scheme["type"], scheme.get("scheme"), scheme.get("in"), scheme.get("name"))
        for name, scheme in document["components"]["securitySchemes"].items()
    }
    assert schemes == {
        "AdminBearer": ("http", "bearer", None, None),
        "AdminHeader": ("apiKey", None, "header", "X-Admin-Token"),
        "AdminQuery": ("apiKey", None, "query", "admin_token"),
        "ApiBearer": ("http", "bearer", None, None),
    }
    assert document["paths"]["/api/admin/x/{name}"]["get"]["security"] == [
        {"AdminBearer": []},
        {"AdminHeader": []},
        {"AdminQuery": []},
    ]
