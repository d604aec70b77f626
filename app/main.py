"""The service: everything it is made of, started in order and stopped in reverse."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, cast

from fastapi import FastAPI
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from app import logs, problems, tracing
from app.agents import errors
from app.data_dir import NOT_WRITABLE, DataDir
from app.database import Database, DatabaseUnavailable
from app.embedded import EmbeddedPostgres, EmbeddedPostgresError
from app.middleware import AdminTokenMiddleware, BodyLimitMiddleware, RequestIdMiddleware
from app.routes import admin, ai, executions, health
from app.settings import Settings, StartError
from telemetry import Telemetry, configure

DRAIN_SECONDS = 5.0
"""Deadline at shutdown for requests that are cut off to end, and again for the spool to reach Postgres."""
FIRST_TRY_SECONDS = 10.0
"""How long the start waits for a first answer of the database before it goes on without."""
UPKEEP_SECONDS = 3600.0
"""Pause between looks at the partitions, which are made a week ahead."""
RETRY_SECONDS = (1.0, 30.0)
"""First and longest pause between attempts to migrate."""

logger = logging.getLogger(__name__)


class Service(FastAPI):
    """The application behind the door: token out of the URL, request id in, start errors as one line."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            title="Spanledger",
            description="Observability for AI agents: spans, metrics and rows that agree.",
            lifespan=lifespan,
            # FastAPI's own spans would be four more a request, beside the one of the instrumentation.
            telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
        )
        self.state.settings = settings
        self.state.migrated = False
        self.in_flight = 0
        self._door = AdminTokenMiddleware(RequestIdMiddleware(super().__call__))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, _start_errors_as_a_line(send))
            return
        self.in_flight += 1
        try:
            await self._door(scope, receive, send)
        except asyncio.CancelledError:  # by the server, at the end of its patience; a traceback tells nothing more
            logger.warning("cut off by the shutdown: %s", scope["path"])
        except Exception:
            if not scope.get("spanledger.logged"):  # by `problems`: once is enough
                raise
        finally:
            self.in_flight -= 1

    async def drained(self) -> None:
        """Wait a while until the last request has ended: the server has cancelled those left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while self.in_flight:
                    await asyncio.sleep(0.01)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service, not yet started; without `settings` those of the environment.

    Raises:
        SettingsError: A setting is wrong.
    """
    settings = settings or Settings.load()
    logs.install(settings.log_level, settings.redact_patterns)
    app = Service(settings)
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes)
    problems.install(app)
    for router in (ai.router, admin.router, executions.router, health.router):
        app.include_router(router)
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start what the routes need, in `app.state`; on the way out drain, then stop it."""
    service = cast(Service, app)
    settings: Settings = app.state.settings
    async with AsyncExitStack() as stack:
        directory = DataDir(settings.spanledger_data_dir).acquire()
        stack.callback(directory.release)
        app.state.admin_tokens = settings.admin_tokens() or (directory.admin_token(),)
        database = app.state.database = await _open_database(app, directory, stack)
        telemetry = app.state.telemetry = _open_telemetry(settings, directory, database)
        stack.push_async_callback(asyncio.to_thread, telemetry.shutdown, DRAIN_SECONDS)
        stack.enter_context(tracing.server_spans(app, telemetry.tracer_provider))
        stack.push_async_callback(service.drained)
        stack.callback(gc.unfreeze)
        gc.collect()
        gc.freeze()  # a collection that walks what the start made is most of the p99
        yield


def _open_telemetry(settings: Settings, directory: DataDir, database: Database) -> Telemetry:
    registry = CollectorRegistry()
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(collector)
    spool_dir = directory.path / "spool"
    try:
        return configure(
            spool_dir=spool_dir,
            connect=database.sink_connection,
            registry=registry,
            resource=tracing.resource(settings),
            sampler=tracing.sampler(settings),
            span_exporter=tracing.exporter(settings),
            spool_max_bytes=settings.spool_max_bytes,
            payload_max_bytes=settings.payload_max_bytes,
            redact=settings.redact_patterns,
            capture_content=settings.capture_content(),
            retention=timedelta(days=settings.retention_days),
            error_types=errors.names(),
        )
    except OSError as error:
        raise StartError(NOT_WRITABLE.format(path=spool_dir, reason=error.strerror)) from error


async def _open_database(app: FastAPI, directory: DataDir, stack: AsyncExitStack) -> Database:
    """A database ready to use; one of someone else may be away, then it is made ready when it is back."""
    url = app.state.settings.database_url
    if url is None:
        server = EmbeddedPostgres(directory.path)
        stack.push_async_callback(asyncio.to_thread, server.stop)
        try:
            database = Database(await asyncio.to_thread(server.start))
        except EmbeddedPostgresError as error:
            raise StartError(str(error)) from error
    else:
        database = Database(url.get_secret_value())
    stack.callback(database.dispose)
    tried = asyncio.Event()
    upkeep = asyncio.create_task(_keep_ready(app, database, tried))
    stack.callback(upkeep.cancel)
    with suppress(TimeoutError):
        await asyncio.wait_for(tried.wait(), FIRST_TRY_SECONDS)
    return database


def _prepare(app: FastAPI, database: Database) -> None:
    database.migrate()
    database.ensure_partitions()
    app.state.migrated = True


async def _keep_ready(app: FastAPI, database: Database, tried: asyncio.Event) -> None:
    """Migrate as soon as the database lets us, then keep making partitions ahead of need."""
    shortest, longest = RETRY_SECONDS
    pause = shortest
    while True:
        try:
            await asyncio.to_thread(_prepare, app, database)
        except Exception as error:
            message = "rows wait in the spool, next try in %.0f s: %s"
            logger.warning(message, pause, error, exc_info=not isinstance(error, DatabaseUnavailable))
            wait, pause = pause, min(pause * 2, longest)
        else:
            wait, pause = UPKEEP_SECONDS, shortest
        tried.set()
        await asyncio.sleep(wait)


def _start_errors_as_a_line(send: Send) -> Send:
    async def send_line(message: Message) -> None:
        error = sys.exc_info()[1]
        if message["type"] == "lifespan.startup.failed" and isinstance(error, StartError):
            sys.stderr.write(f"spanledger: {error}\n")
            logging.getLogger("uvicorn.error").disabled = True  # it would add that the start failed
            message = {**message, "message": ""}
        await send(message)

    return send_line


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
