"""`/api/admin/in-flight`: runs of other processes, listed and cancelled."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app import openapi, problems
from app.routes import inflight
from app.schemas import InFlightAnswer
from tests.app.service import ROOT
from tests.end_to_end.waiting import eventually

TOKEN = "admin-token-0123456789"
AGENT = """
    import asyncio, sys
    from pathlib import Path
    from opentelemetry.sdk.resources import Resource
    from telemetry import AgentMonitor, bind, configure

    attributes = {"service.name": "tutor", "deployment.environment.name": "test", "service.instance.id": "i-1"}
    configure(spool_dir=Path(sys.argv[1]), resource=Resource(attributes))

    async def main():
        monitor = AgentMonitor()
        with bind(user_id="u1", request_id="r1"), monitor.execution("outer", input={"topic": "owls"}):
            with monitor.execution("inner"):
                print("open", flush=True)
                await asyncio.sleep(60)

    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        print("cancelled", flush=True)
"""


@contextmanager
def agent(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with two open runs."""
    command = [sys.executable, "-c", textwrap.dedent(AGENT), str(data_dir / "spool")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def service(data_dir: Path, limit: float = 900.0) -> FastAPI:
    app = FastAPI()
    problems.install(app)
    app.include_router(inflight.router)
    app.state.admin_tokens = (TOKEN,)
    app.state.settings = SimpleNamespace(spool_dir=data_dir / "spool", stuck_after_seconds=limit)
    return app


async def ask(app: FastAPI, method: str, path: str = "", token: str = TOKEN) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers) as client:
        return await client.request(method, f"/api/admin/in-flight{path}")


@pytest.mark.anyio
async def test_nothing_runs(tmp_path: Path) -> None:
    answer = await ask(service(tmp_path), "GET")
    assert (answer.status_code, answer.json()) == (200, {"data": [], "count": 0, "stuck": 0})
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.anyio
async def test_runs_of_another_process_are_listed_and_cancelled(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    with agent(tmp_path) as process:
        answer = await ask(service(tmp_path), "GET")
        InFlightAnswer.model_validate_json(answer.content)
        outer, inner = answer.json()["data"]
        assert (answer.json()["count"], answer.json()["stuck"]) == (2, 0)
        changing = {name: outer.pop(name) for name in ("trace_id", "span_id", "started_at", "age_seconds", "seen_at")}
        assert outer == {
            **{"parent_agent_span_id": None, "is_root": True, "agent_name": "outer", "stuck": False},
            **{"cancel_requested": False, "user_id": "u1", "session_id": None, "request_id": "r1"},
            **{"service_name": "tutor", "environment": "test", "instance_id": "i-1", "pid": process.pid},
            **{"host": outer["host"], "input_data": {"topic": "owls"}},
        }
        assert before <= datetime.fromisoformat(changing["started_at"]) <= datetime.fromisoformat(changing["seen_at"])
        assert 0 < changing["age_seconds"] < 60
        assert (inner["agent_name"], inner["is_root"], inner["user_id"]) == ("inner", False, "u1")
        assert inner["parent_agent_span_id"] == changing["span_id"]

        assert (await ask(service(tmp_path, 0.0), "GET")).json()["stuck"] == 2
        path = f"/{inner['trace_id']}/{inner['span_id'].upper()}/cancel"
        cancelled = await ask(service(tmp_path), "POST", path)
        assert (cancelled.status_code, cancelled.json()) == (
            202,
            {"status": "cancel requested", "trace_id": inner["trace_id"], "span_id": inner["span_id"]},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "cancelled\n"
        process.wait(20)
        assert (await ask(service(tmp_path), "POST", path)).status_code == 404
    assert (await ask(service(tmp_path), "GET")).json()["data"] == []


@pytest.mark.anyio
async def test_a_dead_process_has_nothing_in_flight(tmp_path: Path) -> None:
    with agent(tmp_path) as process:
        process.kill()
        process.wait(20)
    app = service(tmp_path)
    assert (await ask(app, "GET")).json()["count"] == 0


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "token", "status"),
    [
        ("GET", "", "wrong", 403),
        ("POST", f"/{'0' * 32}/{'0' * 16}/cancel", "wrong", 403),
        ("POST", f"/{'0' * 32}/{'0' * 16}/cancel", TOKEN, 404),
        ("POST", f"/{'0' * 32}/{'x' * 16}/cancel", TOKEN, 422),
    ],
)
async def test_what_is_refused(tmp_path: Path, method: str, path: str, token: str, status: int) -> None:
    answer = await ask(service(tmp_path), method, path, token)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_example_is_valid() -> None:
    InFlightAnswer.model_validate(openapi.IN_FLIGHT, strict=False, extra="forbid")


def test_both_are_documented(tmp_path: Path) -> None:
    paths = service(tmp_path).openapi()["paths"]
    assert set(paths["/api/admin/in-flight"]["get"]["responses"]) == {"200", "403", "422", "503"}
    cancel = paths["/api/admin/in-flight/{trace_id}/{span_id}/cancel"]["post"]
    assert set(cancel["responses"]) == {"202", "403", "404", "422", "503"}


def test_gauges_of_a_drain_cover_every_process(tmp_path: Path) -> None:
    from prometheus_client import CollectorRegistry

    from telemetry import Drain

    def away() -> Any:
        raise AssertionError("nothing to store")

    registry = CollectorRegistry()
    drain = Drain(tmp_path / "spool", away, registry=registry, drain_interval=3600)
    labels = {"service_name": "tutor", "deployment_environment_name": "test", "gen_ai_agent_name": "outer"}
    with agent(tmp_path), agent(tmp_path):
        eventually(lambda: registry.get_sample_value("spanledger_executions_in_flight", labels) == 2)
        age = registry.get_sample_value("spanledger_executions_oldest_age_seconds", labels)
        assert age is not None
        assert 0 < age < 60
        assert drain.shutdown()
