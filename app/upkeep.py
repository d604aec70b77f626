"""The database of a running process: started if it is the embedded one, migrated, partitions and roll-up kept up."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress

from fastapi import FastAPI

from app import rollup
from app.data_dir import DataDir
from app.database import Database, DatabaseUnavailable
from app.embedded import EmbeddedPostgres, EmbeddedPostgresError
from app.settings import StartError

FIRST_TRY_SECONDS = 10.0
"""How long the start waits for a first answer of the database before it goes on without."""
UPKEEP_SECONDS = 3600.0
"""Pause between looks at the partitions, which are made a week ahead, and at the roll-up of hours that are over."""
RETRY_SECONDS = (1.0, 30.0)
"""First and longest pause between attempts to migrate."""

logger = logging.getLogger(__name__)


async def open_database(app: FastAPI, directory: DataDir, stack: AsyncExitStack) -> Database:
    """A database ready to use; one of someone else may be away, then it is made ready when it is back.

    `app.state.migrated` tells since when. What is started here ends with `stack`.

    Raises:
        StartError: The embedded server does not start.
    """
    url = app.state.settings.database_url
    if app.state.supervisor is not None:  # which keeps the database ready
        database = Database(url.get_secret_value(), most_connections=3)
        stack.callback(database.dispose)
        app.state.migrated = True
        return database
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
    rollup.compact(database)


async def _keep_ready(app: FastAPI, database: Database, tried: asyncio.Event) -> None:
    """Migrate as soon as the database lets us, then keep making partitions ahead of need and fold the roll-up."""
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
