"""The admin endpoints over HTTP, on a database of the test and at a fixed time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import httpx
from fastapi import FastAPI

from app import problems, queries
from app.database import Database
from app.middleware import AdminTokenMiddleware
from app.routes import admin, executions, rejected
from tests.app.rows import NOW

TOKEN = "admin-token-0123456789"


def service(database: Database, data_dir: Path = Path("/nowhere")) -> FastAPI:
    """The admin part of the service, as app.main puts it together."""
    app = FastAPI()
    problems.install(app)
    app.add_middleware(AdminTokenMiddleware)
    app.include_router(admin.router)
    app.include_router(executions.router)
    app.include_router(rejected.router)
    app.state.admin_tokens = (TOKEN,)
    app.state.settings = SimpleNamespace(retention_days=35, spool_dir=data_dir / "spool")
    app.state.database = database
    app.dependency_overrides[queries.utc_now] = lambda: NOW
    return app


async def get(
    database: Database, url: str, token: str | None = TOKEN, data_dir: Path = Path("/nowhere")
) -> httpx.Response:
    transport = httpx.ASGITransport(service(database, data_dir))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        return await client.get(url)
