"""`spanledger migrate`: the schema of DATABASE_URL, brought to the newest version by its owner."""

from __future__ import annotations

import time

from sqlalchemy.exc import DBAPIError

from app.database import Database, DatabaseUnavailable
from app.settings import StartError

WAIT_SECONDS = 60.0
"""How long a database that does not answer yet is waited for."""
PAUSE_SECONDS = 1.0


def migrate(url: str) -> None:
    """Bring the schema of `url` to head and make the partitions.

    Raises:
        StartError: The database did not answer in time, or it refuses the migration.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    database = Database(url)
    try:
        while True:
            try:
                database.migrate()
                database.ensure_partitions()
                return
            except DatabaseUnavailable as error:
                if time.monotonic() >= deadline:
                    raise StartError(str(error)) from None
            except DBAPIError as error:
                reason = str(error.orig).strip().splitlines()[0]
                raise StartError(f"cannot migrate {database.url.render_as_string()}: {reason}") from None
            time.sleep(PAUSE_SECONDS)
    finally:
        database.dispose()
