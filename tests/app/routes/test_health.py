from __future__ import annotations

import gzip
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, AlwaysRecordSampler
from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from app.database import Database
from app.routes import health
from telemetry import configure


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FastAPI]:
    """The routes over real telemetry, without a database yet."""
    app = FastAPI()
    app.include_router(health.router)
    app.state.supervisor = None
    provider = TracerProvider(sampler=AlwaysRecordSampler(ALWAYS_ON), shutdown_on_exit=False)
    app.state.telemetry = configure(
        spool_dir=tmp_path / "spool", tracer_provider=provider, registry=CollectorRegistry()
    )
    yield app
    app.state.telemetry.shutdown()


async def get(app: FastAPI, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path, headers={"Accept-Encoding": "identity", **headers})


async def readiness(app: FastAPI) -> tuple[int, object]:
    answer = await get(app, "/readyz")
    return answer.status_code, answer.json()


@pytest.mark.anyio
async def test_the_process_is_alive(app: FastAPI) -> None:
    answer = await get(app, "/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.anyio
async def test_it_is_ready_with_a_migrated_database(app: FastAPI, database: Database) -> None:
    app.state.database, app.state.migrated = database, False
    checks = {"spool": "ok", "postgres": "not migrated"}
    assert await readiness(app) == (200, {"status": "degraded", "checks": checks})
    app.state.migrated = True
    checks["postgres"] = "ok"
    assert await readiness(app) == (200, {"status": "ok", "checks": checks})


@pytest.mark.anyio
async def test_without_postgres_it_is_degraded_and_without_a_spool_it_is_not_ready(
    app: FastAPI, tmp_path: Path
) -> None:
    app.state.database, app.state.migrated = Database("postgresql://127.0.0.1:1/nowhere"), True
    checks = {"spool": "ok", "postgres": "away"}
    assert await readiness(app) == (200, {"status": "degraded", "checks": checks})
    (tmp_path / "spool").rename(tmp_path / "gone")
    checks["spool"] = "not writable"
    assert await readiness(app) == (503, {"status": "unavailable", "checks": checks})


@pytest.mark.anyio
async def test_metrics_have_exemplars_for_openmetrics_and_none_in_the_plain_text(app: FastAPI) -> None:
    counter = Counter("cards", "Cards.", registry=app.state.telemetry.registry)
    counter.inc(3, {"trace_id": "ab"})
    open_metrics = await get(app, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    plain = await get(app, "/metrics", Accept="text/plain")
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0;")
    parsed = text_string_to_metric_families(open_metrics.text)  # type: ignore[no-untyped-call]  # not typed there
    families = {family.name: family for family in parsed}
    (sample,) = [sample for sample in families["cards"].samples if sample.name == "cards_total"]
    assert sample.exemplar is not None
    assert (sample.value, sample.exemplar.labels) == (3, {"trace_id": "ab"})
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "cards_total 3.0\n" in plain.text


@pytest.mark.anyio
async def test_metrics_are_compressed_only_if_accepted(app: FastAPI) -> None:
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        client.stream("GET", "/metrics", headers={"Accept-Encoding": "gzip"}) as answer,
    ):
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
    plain = await get(app, "/metrics")
    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw).splitlines()[0] == plain.content.splitlines()[0]
    assert "content-encoding" not in plain.headers


@pytest.mark.anyio
async def test_metrics_are_rendered_beside_the_event_loop(app: FastAPI) -> None:
    threads = []

    class Collector:
        def collect(self) -> Iterable[Metric]:
            threads.append(threading.current_thread())
            return []

        def describe(self) -> Iterable[Metric]:
            return []

    app.state.telemetry.registry.register(Collector())
    await get(app, "/metrics")
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
