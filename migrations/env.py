"""Alembic's environment: every migration runs in one transaction, one process at a time."""

from __future__ import annotations

from typing import cast

from alembic import context
from sqlalchemy import Connection, NullPool, create_engine, text

# Our own name, so that Spanledger can share a database with another application that uses Alembic.
VERSION_TABLE = "spanledger_alembic_version"


def run(connection: Connection) -> None:
    context.configure(connection=connection, version_table=VERSION_TABLE)
    with context.begin_transaction():
        # Whoever waits here reads the version afterwards and finds nothing left to do.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('spanledger_migrate'))"))
        context.run_migrations()


given = cast("Connection | None", context.config.attributes.get("connection"))
if given is not None:
    run(given)
else:
    engine = create_engine(context.get_x_argument(as_dictionary=True)["url"], poolclass=NullPool)
    with engine.connect() as connection:
        run(connection)
