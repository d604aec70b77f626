"""The database as the service sees it: one engine, and a role for every purpose."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import psycopg
from psycopg import sql
from sqlalchemy import URL, Connection, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

logger = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).resolve().parents[1] / "migrations"
VERSION_TABLE = "spanledger_alembic_version"  # the same as in migrations/env.py
CONNECT_TIMEOUT = 5  # seconds
DAYS_AHEAD = 7  # the most that spanledger_ensure_partitions accepts
# SET ROLE to a role that is not there, or that was not granted to us.
ROLE_REFUSED = (psycopg.errors.InvalidParameterValue, psycopg.errors.InsufficientPrivilege)
FALL_BACK_ROLES = ("spanledger_sink", "spanledger_admin")  # row-level security must never be lost silently

Role = Literal["spanledger_sink", "spanledger_admin", "spanledger_reader", "spanledger_grafana"]


class DatabaseUnavailable(psycopg.OperationalError):
    """Postgres cannot be reached or refuses us; the message is one line without the password."""


class Database:
    """Connections to Postgres, none of which works with the rights of the login role.

    `url` is a libpq-style or SQLAlchemy URL. Where the roles could not be made (no CREATEROLE), sink and
    admin fall back to the login role with a warning; readers under row-level security never do.

    Raises ValueError for a URL that is not of Postgres.
    """

    def __init__(self, url: str, most_connections: int = 15) -> None:
        self.url = database_url(url)
        arguments = connect_arguments(self.url)
        self._engine = create_engine(
            self.url,
            pool_pre_ping=True,
            pool_timeout=5,
            pool_size=min(5, most_connections),
            max_overflow=max(0, most_connections - 5),
            connect_args=arguments,
        )
        self._missing_roles: set[str] = set()

    def dispose(self) -> None:
        """Close the pooled connections."""
        self._engine.dispose()

    def migrate(self) -> None:
        """Bring the schema to the newest version; concurrent starts wait for each other.

        A schema that is newer than this release is left alone: migrations are made so that the release before
        keeps working. Raises DatabaseUnavailable.
        """
        with self._connection() as connection:
            if self._version(connection) >= newest_revision():
                return
            connection.rollback()
            logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
            from alembic import command  # only a start that migrates pays for importing it
            from alembic.config import Config

            driver_connection = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
            driver_connection.add_notice_handler(log_warning)
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def ensure_partitions(self) -> int:
        """Make the daily partitions of yesterday to a week ahead (UTC) and return how many were missing."""
        with self.connect("spanledger_admin") as connection:
            made = connection.execute(
                text("SELECT spanledger_ensure_partitions((now() AT TIME ZONE 'UTC')::date - 1, :days)"),
                {"days": DAYS_AHEAD + 2},
            )
            return int(made.scalar_one())

    @contextmanager
    def connect(self, role: Role, user_id: str | None = None) -> Iterator[Connection]:
        """A transaction with the rights of `role`; `user_id` is whose rows spanledger_reader sees.

        Raises DatabaseUnavailable, also when the connection breaks inside the block.
        """
        with self._connection() as connection:
            settings = "SET LOCAL TIME ZONE 'UTC'"
            if user_id is not None:
                # A literal, because Citus passes on no set_config().
                settings += sql.SQL("; SET LOCAL app.user_id = {}").format(user_id).as_string()
            if role not in self._missing_roles:
                try:
                    run_script(connection, f"SET LOCAL ROLE {role}; {settings}")
                except DBAPIError as error:
                    if not isinstance(error.orig, ROLE_REFUSED):
                        raise
                    connection.rollback()
                    self._fall_back(role, error.orig)
            if role in self._missing_roles:
                run_script(connection, settings)
            yield connection
            connection.commit()

    def sink_connection(self) -> psycopg.Connection[Any]:
        """A connection of its own as spanledger_sink, for COPY. Raises DatabaseUnavailable."""
        connection = self._psycopg_connection("spanledger sink", CONNECT_TIMEOUT)
        try:
            # A COPY may take its time; waiting for a lock would only hold up the rows behind it.
            connection.execute("SET statement_timeout = 0; SET lock_timeout = '10s'; SET TIME ZONE 'UTC'")
            if "spanledger_sink" not in self._missing_roles:
                try:
                    connection.execute("SET ROLE spanledger_sink")
                except ROLE_REFUSED as error:
                    self._fall_back("spanledger_sink", error)
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        return connection

    def reachable(self) -> bool:
        """Whether a new connection gets an answer within two seconds."""
        try:
            with self._psycopg_connection("spanledger readiness", 2) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except PoolTimeout as error:
            raise self._unavailable(error) from error
        except DBAPIError as error:
            if error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError):
                raise self._unavailable(error.orig) from error
            raise

    def _psycopg_connection(self, application_name: str, timeout: int) -> psycopg.Connection[Any]:
        _, in_url = self._engine.dialect.create_connect_args(self.url)
        arguments = {**connect_arguments(self.url), **in_url}
        arguments |= {"application_name": application_name, "connect_timeout": timeout}
        try:
            return psycopg.connect(**arguments, autocommit=True)
        except psycopg.OperationalError as error:
            raise self._unavailable(error) from error

    def _version(self, connection: Connection) -> str:
        if connection.scalar(text("SELECT to_regclass(:table)"), {"table": VERSION_TABLE}) is None:
            return ""
        return connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) or ""

    def _fall_back(self, role: str, error: psycopg.Error) -> None:
        if role not in FALL_BACK_ROLES:
            raise self._unavailable(error) from error
        logger.warning("Working as the login role, which may do more than %s: %s", role, str(error).strip())
        self._missing_roles.add(role)

    def _unavailable(self, error: BaseException | None) -> DatabaseUnavailable:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no answer")
        address = self.url.render_as_string(hide_password=True)
        return DatabaseUnavailable(f"cannot use Postgres at {address}: {reason}")


def database_url(url: str) -> URL:
    """`url` with our driver; the short forms postgres:// and postgresql:// are understood."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = URL.create("unknown")
    if parsed.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise ValueError("a database URL must look like postgresql://user:password@host:5432/database")
    return parsed.set(drivername="postgresql+psycopg")


def connect_arguments(url: URL) -> dict[str, str | int | None]:
    """Our defaults for what `url` does not say: a host that vanishes is noticed within half a minute."""
    defaults: dict[str, str | int | None] = {
        "application_name": "spanledger",
        "connect_timeout": CONNECT_TIMEOUT,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        # Plans are made for the values: partitions are left out, and partial indexes are used.
        "prepare_threshold": None,
    }
    return {name: value for name, value in defaults.items() if name not in url.query}


def log_warning(diagnostic: psycopg.errors.Diagnostic) -> None:
    """Pass on what the server warns of; its notices are small talk."""
    if diagnostic.severity_nonlocalized == "WARNING":
        logger.warning("%s", diagnostic.message_primary)


def newest_revision() -> str:
    """The id of the newest migration: its file is named `<id>_<what>.py`, ids sort as text."""
    return max(file.name.split("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def run_script(connection: Connection, statements: str) -> None:
    """Several statements in one round trip."""
    connection.exec_driver_sql(statements, execution_options={"no_parameters": True})
