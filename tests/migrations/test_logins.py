"""migrations/logins.sql, run by the real psql on real servers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from app.database import Database
from tests.components import component
from tests.conftest import Server

LOGINS = Path(__file__).resolve().parents[2] / "migrations" / "logins.sql"
ROLES = ("spanledger_sink", "spanledger_admin", "spanledger_reader", "spanledger_grafana")


@pytest.fixture
def logins(database: Database, server: Server) -> Iterator[Database]:
    """A database whose cluster has the two logins; they are dropped afterwards, for roles are the cluster's."""
    host = str(server.url.query["host"])
    environment = {
        "PATH": os.environ["PATH"],
        "PGHOST": host,
        "PGUSER": str(server.url.username),
        "PGDATABASE": str(database.url.database),
        "SPANLEDGER_DATABASE_PASSWORD": "it's one",
        "GRAFANA_DATABASE_PASSWORD": 'it"s another',
    }
    psql = [str(component("postgres15") / "psql"), "--no-psqlrc", "--quiet", f"--file={LOGINS}"]
    try:
        for _ in range(2):
            done = subprocess.run(psql, env=environment, capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        yield database
    finally:
        for login in ("spanledger_app", "grafana"):
            server.execute(f"DROP OWNED BY {login}", str(database.url.database))
            server.execute(f"DROP ROLE {login}")


def connect(database: Database, server: Server, user: str) -> psycopg.Connection[tuple[object, ...]]:
    arguments = server.connect_arguments(str(database.url.database))
    return psycopg.connect(**(arguments | {"user": user}), autocommit=True)


def may(connection: psycopg.Connection[tuple[object, ...]], statement: str) -> bool:
    try:
        connection.execute(statement.encode())
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


@pytest.mark.parametrize("server", ["embedded", "postgres15"], indirect=True)
def test_each_login_may_do_its_part_only(logins: Database, server: Server) -> None:
    tables = ("spanledger_alembic_version", "agent_executions", "grafana_executions")
    seen: dict[str, tuple[list[str], list[str], bool]] = {}
    for login in ("spanledger_app", "grafana"):
        with connect(logins, server, login) as connection:
            reads = [table for table in tables if may(connection, f"SELECT 1 FROM {table}")]
            becomes = [role for role in ROLES if may(connection, f"SET ROLE {role}")]
            connection.execute("RESET ROLE")
            seen[login] = (reads, becomes, may(connection, "CREATE TABLE mine ()"))
    assert seen == {
        "spanledger_app": (["spanledger_alembic_version"], list(ROLES[:3]), False),
        "grafana": (["grafana_executions"], ["spanledger_grafana"], False),
    }


@pytest.mark.parametrize("server", ["embedded", "postgres15"], indirect=True)
def test_the_service_starts_as_its_login(logins: Database, server: Server) -> None:
    url = logins.url.set(username="spanledger_app").render_as_string(hide_password=False)
    database = Database(url)
    try:
        database.migrate()
        assert database.ensure_partitions() >= 0
        database.sink_connection().close()
    finally:
        database.dispose()
