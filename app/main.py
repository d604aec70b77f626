"""The service: everything it is made of, started in order and stopped in reverse."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import psycopg
from fastapi import FastAPI

from app import logs, problems, tracing, upkeep
from app.agents import errors
from app.data_dir import DataDir, writing
from app.middleware import BodyLimitMiddleware
from app.routes import admin, ai, executions, health, inflight, ledger, rejected
from app.service import DRAIN_SECONDS, Service, python_registry
from app.settings import Settings, StartError
from telemetry import Telemetry, configure

Connect = Callable[[], psycopg.Connection[Any]]


def create_app(settings: Settings | None = None, supervisor: Path | None = None) -> FastAPI:
    """The service, not yet started; without `settings` those of the environment.

    With `supervisor`, the socket of one, it is a worker: it spools, and the supervisor stores and has the metrics.

    Raises:
        SettingsError: A setting is wrong.
    """
    settings = settings or Settings.load()
    settings.refuse_strangers()
    logs.install(settings.log_level, settings.redact_patterns)
    app = Service(settings, lifespan)
    app.state.supervisor = supervisor
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes)
    problems.install(app)
    for route in (ai, admin, executions, inflight, rejected, ledger, health):
        app.include_router(route.router)
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start what the routes need, in `app.state`; on the way out drain, then stop it."""
    service = cast(Service, app)
    settings: Settings = app.state.settings
    async with AsyncExitStack() as stack:
        directory = DataDir(settings.spanledger_data_dir)
        if app.state.supervisor is None:
            directory.acquire()
            stack.callback(directory.release)
        app.state.admin_tokens = settings.admin_tokens() or (directory.admin_token(),)
        database = app.state.database = await upkeep.open_database(app, directory, stack)
        sink = database.sink_connection if app.state.supervisor is None else None
        telemetry = app.state.telemetry = _open_telemetry(settings, sink)
        stack.push_async_callback(asyncio.to_thread, telemetry.shutdown, DRAIN_SECONDS)
        stack.enter_context(tracing.server_spans(app, telemetry.tracer_provider))
        stack.push_async_callback(service.drained)
        stack.callback(gc.unfreeze)
        gc.collect()
        gc.freeze()  # a collection that walks what the start made is most of the p99
        yield


def _open_telemetry(settings: Settings, connect: Connect | None) -> Telemetry:
    with writing(settings.spool_dir):
        return configure(
            spool_dir=settings.spool_dir,
            connect=connect,
            registry=python_registry(),
            resource=tracing.resource(settings),
            sampler=tracing.sampler(settings),
            span_exporter=tracing.exporter(settings),
            spool_max_bytes=settings.spool_max_bytes,
            spool_sync=settings.spool_sync,
            payload_max_bytes=settings.payload_max_bytes,
            redact=settings.redact_patterns,
            capture_content=settings.capture_content(),
            retention=timedelta(days=settings.retention_days),
            error_types=errors.names(),
        )


def __getattr__(name: str) -> Any:
    """`app`, for `uvicorn app.main:app`, made when it is asked for: importing the module starts nothing."""
    if name != "app":
        raise AttributeError(name)
    try:
        return globals().setdefault("app", create_app())
    except StartError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"spanledger: {line}\n")
        raise SystemExit(2) from None
