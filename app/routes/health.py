"""Is it alive, is it ready, and its metrics. None of these doors needs a token or makes a span."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client.exposition import choose_encoder, gzip_accepted

from app.database import Database
from app.supervisor import ask
from telemetry import Drain, Telemetry

router = APIRouter(tags=["health"])

GZIP_LEVEL = 1
"""A scrape comes every few seconds: level 1 takes a third of the CPU of level 9."""


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(request: Request) -> JSONResponse:
    """Whether agents may run here: 503 only where an ended run could not be kept.

    Postgres away is `degraded` with 200: the spool keeps every row meanwhile, and 503 would turn an outage of
    the database into one of the agents.
    """
    telemetry: Telemetry | Drain = request.app.state.telemetry
    database: Database = request.app.state.database
    spool = os.access(telemetry.spool.directory, os.W_OK | os.X_OK)
    postgres = "away" if not database.reachable() else "ok" if request.app.state.migrated else "not migrated"
    status = "unavailable" if not spool else "ok" if postgres == "ok" else "degraded"
    checks = {"spool": "ok" if spool else "not writable", "postgres": postgres}
    return JSONResponse({"status": status, "checks": checks}, 200 if spool else 503)


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Prometheus metrics; OpenMetrics with exemplars where the scraper asks for it.

    A plain `def`: rendering takes up to 240 ms at 8 500 series, which the event loop must not wait for.
    """
    supervisor: Path | None = request.app.state.supervisor
    if supervisor is not None:
        return _relay(supervisor, request)
    encoder, content_type = choose_encoder(request.headers.get("accept", ""))
    content = encoder(request.app.state.telemetry.registry)
    headers = {"content-type": content_type, "vary": "accept, accept-encoding"}
    if gzip_accepted(request.headers.get("accept-encoding", "")):
        content = gzip.compress(content, GZIP_LEVEL)
        headers["content-encoding"] = "gzip"
    return Response(content, headers=headers)


def _relay(supervisor: Path, request: Request) -> Response:
    """The metrics of all workers, from whoever adds them up, as this scraper wants them."""
    asked = {name: request.headers.get(name, "") for name in ("accept", "accept-encoding")}
    answer = ask(supervisor, "/metrics", asked)
    kept = ("content-type", "content-encoding", "vary")
    headers = {name: value for name, value in answer.headers.items() if name in kept}
    return Response(answer.content, answer.status, headers)
