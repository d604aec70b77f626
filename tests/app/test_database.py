"""Database against real servers; who may see which rows is tests/migrations/test_roles.py."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from app.database import Database, DatabaseUnavailable, database_url, newest_revision
from tests.conftest import Server

ROOT = Path(__file__).resolve().parents[2]
BOTH = pytest.mark.parametrize("server", ["embedded", "postgres15"], indirect=True)


@pytest.fixture
def empty(server: Server) -> Iterator[Database]:
    """A database without a schema."""
    with server.database("template1") as database:
        yield database


def url_of(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


@BOTH
def test_migrate_brings_an_empty_database_to_the_newest_version_once(empty: Database) -> None:
    empty.migrate()
    empty.migrate()
    with empty.connect("spanledger_admin") as connection:
        assert connection.execute(text("SELECT * FROM spanledger_alembic_version")).all() == [(newest_revision(),)]
        assert connection.scalar(text("SELECT count(*) FROM agent_executions")) == 0
    assert empty.ensure_partitions() == 0


@BOTH
def test_concurrent_starts_migrate_once(empty: Database) -> None:
    start = f"""
from app.database import Database
database = Database({url_of(empty)!r})
database.migrate()
print(database.ensure_partitions())
database.dispose()
"""
    starts = [
        subprocess.Popen([sys.executable, "-c", start], cwd=ROOT, text=True, stdout=subprocess.PIPE) for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0] for process in starts] == ["0\n"] * 3


def test_a_start_at_the_newest_version_does_not_import_alembic(database: Database) -> None:
    script = f"""
import sys
from app.database import Database
database = Database({url_of(database)!r})
database.migrate()
database.dispose()
assert "alembic" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_a_newer_schema_is_left_alone(database: Database, server: Server) -> None:
    server.execute("UPDATE spanledger_alembic_version SET version_num = '9999'", str(database.url.database))
    database.migrate()
    assert database.ensure_partitions() == 0


@BOTH
def test_missing_partitions_are_made_under_concurrency(database: Database, server: Server) -> None:
    drop = (
        "DO $$ DECLARE p regclass; BEGIN FOR p IN SELECT inhrelid FROM pg_inherits"
        " JOIN pg_class ON oid = inhrelid WHERE relkind = 'r' LOOP EXECUTE 'DROP TABLE ' || p; END LOOP; END $$"
    )
    server.execute(drop, str(database.url.database))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: database.ensure_partitions(), range(4)))
    assert sorted(made) == [0, 0, 0, 18]
    with database.connect("spanledger_admin") as connection:
        partitions = connection.execute(
            text(
                "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid), c.reloptions,"
                " (SELECT array_agg(DISTINCT attcompression) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0)"
                "  = (SELECT array_agg(DISTINCT attcompression) FROM pg_attribute WHERE attrelid = i.inhparent"
                "  AND attnum > 0)"
                " FROM pg_inherits i JOIN pg_class c ON c.oid = inhrelid"
                " WHERE inhparent = 'agent_executions'::regclass"
                " AND relname = 'agent_executions_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')"
            )
        ).all()
        day = connection.scalar(text("SELECT (now() AT TIME ZONE 'UTC')::date"))
        next_day = connection.scalar(text("SELECT (now() AT TIME ZONE 'UTC')::date + 1"))
    bounds = f"FOR VALUES FROM ('{day} 00:00:00+00') TO ('{next_day} 00:00:00+00')"
    assert partitions == [(f"agent_executions_{day:%Y%m%d}", bounds, ["toast_tuple_target=8160"], True)]


def test_connect_sets_role_user_and_time_zone_for_one_transaction(database: Database) -> None:
    query = text("SELECT current_user::text, current_setting('app.user_id', true), current_setting('TimeZone')")
    user_id = "o'neil \\ 100% %s {} \N{SNOWMAN}"
    for _ in range(8):  # more often than psycopg waits before it would prepare a statement
        with database.connect("spanledger_reader", user_id=user_id) as connection:
            assert connection.execute(query).one() == ("spanledger_reader", user_id, "UTC")
    with database.connect("spanledger_grafana") as connection:
        assert connection.execute(query).one() == ("spanledger_grafana", "", "UTC")


def test_connect_rolls_back_when_the_block_fails(database: Database) -> None:
    with pytest.raises(ProgrammingError), database.connect("spanledger_admin") as connection:
        connection.execute(text("SELECT * FROM nowhere"))
    with database.connect("spanledger_admin") as connection:
        assert connection.scalar(text("SELECT 1")) == 1


def test_sink_connection_has_its_role_and_limits(database: Database) -> None:
    with database.sink_connection() as connection:
        assert connection.autocommit is False
        connection.rollback()
        settings = [("role",), ("application_name",), ("lock_timeout",), ("statement_timeout",), ("TimeZone",)]
        values = [connection.execute("SELECT current_setting(%s)", name).fetchone() for name in settings]
    assert values == [("spanledger_sink",), ("spanledger sink",), ("10s",), ("0",), ("UTC",)]


def test_missing_roles_fall_back_with_one_warning_but_never_for_readers(
    database: Database, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A login that owns the tables but was granted no role, as on a managed server without CREATEROLE."""
    name = str(database.url.database)
    server.execute(f"CREATE ROLE owner_of_{name} LOGIN")
    server.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO owner_of_{name}", name)
    server.execute(f"GRANT EXECUTE ON FUNCTION spanledger_ensure_partitions TO owner_of_{name}", name)
    login = Database(url_of(database).replace("postgres@", f"owner_of_{name}@"))
    try:
        for _ in range(2):
            assert login.ensure_partitions() == 0
            with login.sink_connection() as connection:
                assert connection.execute("SELECT current_user").fetchone() == (f"owner_of_{name}",)
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert warnings == [
            f'Working as the login role, which may do more than {role}: permission denied to set role "{role}"'
            for role in ("spanledger_admin", "spanledger_sink")
        ]
        with pytest.raises(DatabaseUnavailable, match="permission denied"), login.connect("spanledger_reader", "ann"):
            pass
    finally:
        login.dispose()
        server.execute(f"DROP OWNED BY owner_of_{name}", name)
        server.execute(f"DROP ROLE owner_of_{name}")


def test_an_unreachable_database_is_one_line_without_the_password(tmp_path: Path) -> None:
    database = Database(f"postgresql://ann:secret@/ledger?host={tmp_path}")
    assert database.reachable() is False
    for use in (database.migrate, database.ensure_partitions, database.sink_connection):
        with pytest.raises(DatabaseUnavailable) as error:
            use()
        assert str(error.value).startswith("cannot use Postgres at postgresql+psycopg://ann:***@/ledger?host=")
        assert str(error.value).endswith("failed: No such file or directory")
        assert "\n" not in str(error.value)
    database.dispose()


def test_a_connection_lost_in_the_block_is_unavailability_and_the_next_one_works(
    database: Database, server: Server
) -> None:
    def lose_the_connection() -> None:
        with database.connect("spanledger_admin") as connection:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            server.execute(f"SELECT pg_terminate_backend({pid})")
            connection.execute(text("SELECT 1"))

    assert database.reachable() is True
    with pytest.raises(DatabaseUnavailable, match="terminating connection"):
        lose_the_connection()
    with database.connect("spanledger_admin") as connection:
        assert connection.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize("url", ["mysql://h/d", "sqlite://", "nonsense", "", "postgresql://host:port/d"])
def test_another_kind_of_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must look like postgresql://"):
        Database(url)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_the_usual_schemes_mean_the_same(scheme: str) -> None:
    assert str(database_url(f"{scheme}://host:5433/d")) == "postgresql+psycopg://host:5433/d"


def test_what_the_url_says_wins_over_our_defaults(database: Database) -> None:
    own = Database(url_of(database) + "&application_name=mine&connect_timeout=3")
    with own.connect("spanledger_admin") as connection:
        assert connection.scalar(text("SHOW application_name")) == "mine"
    own.dispose()
    assert issubclass(DatabaseUnavailable, psycopg.OperationalError)  # the sink retries those
