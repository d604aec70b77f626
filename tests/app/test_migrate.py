"""`spanledger migrate` against a real server, and against none."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import text

from app import migrate
from app.cli import spanledger
from app.database import Database, newest_revision
from tests.app.service import NO_DATABASE
from tests.conftest import Server

UNREACHABLE = NO_DATABASE.replace("//", "//someone:hush-hush@")


@pytest.fixture
def empty(server: Server) -> Iterator[Database]:
    """A database without a schema."""
    with server.database("template1") as database:
        yield database


def run(monkeypatch: pytest.MonkeyPatch, url: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `spanledger migrate`."""
    monkeypatch.setenv("DATABASE_URL", url)
    result = CliRunner().invoke(spanledger, ["migrate"])
    return result.exit_code, result.stdout, result.stderr


def full_url(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


def test_an_empty_database_gets_schema_and_partitions_and_a_second_run_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, empty: Database
) -> None:
    for _ in range(2):
        assert run(monkeypatch, full_url(empty)) == (0, "", "")
    with empty.connect("spanledger_admin") as connection:
        assert connection.scalar(text("SELECT to_regclass('agent_executions') IS NOT NULL")) is True
    assert empty.ensure_partitions() == 0
    with psycopg.connect(full_url(empty).replace("+psycopg", "")) as connection:
        row = connection.execute("SELECT version_num FROM spanledger_alembic_version").fetchone()
    assert row == (newest_revision(),)


def test_an_unreachable_database_is_one_line_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "WAIT_SECONDS", 0)
    code, stdout, stderr = run(monkeypatch, UNREACHABLE)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(
        "spanledger: cannot use Postgres at postgresql+psycopg://someone:***@127.0.0.1:1/nowhere: "
    )
    assert "hush-hush" not in stderr


def test_a_database_that_is_not_up_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, server: Server, empty: Database
) -> None:
    name, pauses = empty.url.database, []
    server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")

    def come_up(seconds: float) -> None:
        pauses.append(seconds)
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    monkeypatch.setattr("app.migrate.time.sleep", come_up)
    assert run(monkeypatch, full_url(empty)) == (0, "", "")
    assert pauses == [migrate.PAUSE_SECONDS]


def test_without_a_url_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    code, stdout, stderr = run(monkeypatch, "")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("spanledger: DATABASE_URL is unset: ")
