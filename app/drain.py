"""`spanledger drain`: the sink alone, beside processes that only spool, with `/metrics`, `/healthz` and `/readyz`.

With workers it is the supervisor of `spanledger run --workers N`: they spool, it stores and counts.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

from fastapi import FastAPI

from app import logs, problems, upkeep
from app.agents import errors
from app.data_dir import DataDir, writing
from app.routes import health, ledger
from app.service import DRAIN_SECONDS, Service, python_registry
from app.settings import Settings
from app.workers import Workers
from telemetry import Drain


def create_app(settings: Settings, workers: Workers | None = None, socket: Path | None = None) -> FastAPI:
    """The drain of the spool in `SPANLEDGER_DATA_DIR`, not yet started; `workers` find it at `socket`."""
    logs.install(settings.log_level, settings.redact_patterns)
    app = Service(settings, lifespan)
    app.state.workers, app.state.socket = workers, socket
    problems.install(app)
    app.include_router(health.router)
    if workers is not None:
        app.include_router(ledger.private)
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Drain from start to end, and once more at the end, when the workers have stopped."""
    settings: Settings = app.state.settings
    async with AsyncExitStack() as stack:
        directory = DataDir(settings.spanledger_data_dir).acquire()  # a service there has a sink of its own
        stack.callback(directory.release)
        database = app.state.database = await upkeep.open_database(app, directory, stack)
        with writing(settings.spool_dir):
            drain = app.state.telemetry = Drain(
                settings.spool_dir,
                database.sink_connection,
                registry=python_registry(),
                spool_max_bytes=settings.spool_max_bytes,
                retention=timedelta(days=settings.retention_days),
                error_types=errors.names(),
            )
        stack.push_async_callback(asyncio.to_thread, drain.shutdown, DRAIN_SECONDS)
        if app.state.workers is not None:
            stack.callback(shutil.rmtree, app.state.socket.parent, ignore_errors=True)
            directory.admin_token()  # made once, before they all look for it
            app.state.workers.start(database.url.render_as_string(hide_password=False), app.state.socket)
            stack.push_async_callback(app.state.workers.stop)
        yield
