"""The first migration beyond its happy path: an owner who is no superuser, plans, settings, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from psycopg.errors import FeatureNotSupported
from sqlalchemy import make_url, text

from app.database import MIGRATIONS, Database, DatabaseUnavailable
from tests.conftest import Server, embedded, postgres15

on_both = pytest.mark.parametrize("server", ["embedded", "postgres15"], indirect=True)
on_fresh = pytest.mark.parametrize("start", [embedded, postgres15])  # roles belong to the whole cluster

Start = Callable[[], AbstractContextManager[str]]

ROWS = """
INSERT INTO agent_executions
SELECT execution.* FROM generate_series(1, 5000) n, jsonb_populate_record(NULL::agent_executions, jsonb_build_object(
    'late', false, 'is_root', true, 'service_name', 'tests', 'execution_time_ms', 1, 'tokens_used', 0,
    'input_tokens', 0, 'cache_read_tokens', 0, 'cache_write_tokens', 0, 'output_tokens', 0, 'reasoning_tokens', 0,
    'tokens_total', 0, 'attributes', '{}'::jsonb, 'started_at', now(), 'created_at', now() - n * interval '0.1 s',
    'trace_id', 't' || n / 2, 'span_id', 's' || n, 'agent_name', 'agent ' || n % 500, 'user_id', 'user ' || n % 500,
    'status', CASE WHEN n % 100 = 0 THEN 'timeout' ELSE 'success' END
)) execution
"""


def downgrade(database: Database) -> None:
    """As an operator would, by hand."""
    url = database.url.render_as_string(hide_password=False)
    config = Config(MIGRATIONS / "alembic.ini", cmd_opts=None)
    config.cmd_opts = type("Arguments", (), {"x": [f"url={url}"]})()
    command.downgrade(config, "base")


@contextmanager
def owners_database(superuser_url: str, attributes: str) -> Iterator[Database]:
    """An empty database of a cluster that has never seen a migration, owned by a login that is no superuser."""
    url = make_url(superuser_url)
    with psycopg.connect(user="postgres", dbname="postgres", host=str(url.query["host"]), autocommit=True) as c:
        c.execute(f"CREATE ROLE owner LOGIN {attributes}".encode())
        c.execute("CREATE DATABASE owned OWNER owner")
    database = Database(url.set(username="owner", database="owned").render_as_string())
    try:
        yield database
    finally:
        database.dispose()


@on_fresh
def test_an_owner_with_createrole_makes_the_roles_and_works_in_each(start: Start) -> None:
    with start() as url, owners_database(url, "CREATEROLE") as database:
        database.migrate()
        assert database.ensure_partitions() == 0
        with database.sink_connection() as sink:
            active = sink.execute("SELECT current_user, row_security_active('agent_executions')").fetchone()
            assert active == ("spanledger_sink", True)  # a login without BYPASSRLS can not give it
            with pytest.raises(FeatureNotSupported), sink.transaction():
                sink.execute("COPY agent_executions FROM STDIN")
            sink.execute(ROWS.encode())
            assert sink.execute("UPDATE agent_executions SET tokens_total = 1 WHERE span_id = 's7'").rowcount == 1
            assert sink.execute("SELECT spanledger_ensure_partitions(CURRENT_DATE - 30)").fetchone() == (2,)
        count = text("SELECT count(*) FROM agent_executions")
        with database.connect("spanledger_admin") as connection:
            assert connection.scalar(count) == 5000
        with database.connect("spanledger_reader", user_id="user 7") as connection:
            assert connection.scalar(count) == 10
        with database.connect("spanledger_grafana") as connection:
            assert connection.scalar(text("SELECT count(*) FROM grafana_executions")) == 5000
        downgrade(database)
        with database._engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM pg_roles WHERE rolname ~ '^spanledger_'")) == 0


@on_fresh
def test_an_owner_without_createrole_is_warned_and_works_as_the_login(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with start() as url, owners_database(url, "") as database:
        database.migrate()
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
            f"role spanledger_{role} is missing and owner may not create it"
            for role in ("sink", "admin", "reader", "grafana")
        ]
        assert database.ensure_partitions() == 0
        with database.sink_connection() as sink:
            assert sink.execute("SELECT current_user").fetchone() == ("owner",)
        with pytest.raises(DatabaseUnavailable, match="does not exist"), database.connect("spanledger_grafana"):
            pass


@on_both
def test_downgrade_removes_the_schema_and_leaves_roles_that_others_use(database: Database, server: Server) -> None:
    downgrade(database)
    with psycopg.connect(**server.connect_arguments(str(database.url.database))) as connection:
        left = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind <> 'i'"
            " UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        ).fetchall()
        roles = connection.execute("SELECT rolname FROM pg_roles WHERE rolname ~ '^spanledger_' ORDER BY 1").fetchall()
    assert left == [("spanledger_alembic_version",)]
    assert roles == [(f"spanledger_{name}",) for name in ("admin", "grafana", "reader", "sink")]

    database.migrate()
    assert database.ensure_partitions() == 0


@on_both
def test_payloads_are_compressed_with_lz4_where_the_server_has_it(database: Database) -> None:
    with database.connect("spanledger_admin") as connection:
        has_lz4 = connection.scalar(
            text("SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = 'default_toast_compression'")
        )
        found = connection.execute(
            text(
                "SELECT DISTINCT attname::text FROM pg_attribute JOIN pg_inherits ON attrelid = inhrelid"
                " WHERE attcompression = 'l' ORDER BY 1"
            )
        )
        expected = ["attributes", "error_message", "input_data", "output_data"] if has_lz4 else []
        assert found.scalars().all() == expected


@on_both
def test_lists_walk_the_index_that_was_made_for_them(database: Database, server: Server) -> None:
    def indexes(plan: dict[str, Any]) -> Iterator[str]:
        if "Index Name" in plan:
            yield plan["Index Name"].removesuffix("_idx").split("_", 3)[3]
        for child in plan.get("Plans", []):
            yield from indexes(child)

    name = str(database.url.database)
    server.execute(ROWS, name)
    server.execute("ANALYZE agent_executions", name)
    plans = {}
    with database.connect("spanledger_admin") as connection:
        for where in (
            "true",
            "user_id = 'user 7'",
            "agent_name = 'agent 7'",
            "status = 'timeout'",
            "status IN ('failure', 'timeout', 'crashed')",
            "trace_id = 't7'",
        ):
            plan = connection.scalar(
                text(
                    "EXPLAIN (FORMAT JSON) SELECT * FROM agent_executions"
                    f" WHERE created_at >= now() - interval '1 hour' AND created_at <= now() AND {where}"
                    " ORDER BY created_at DESC, trace_id, span_id LIMIT 50"
                )
            )
            plans[where] = sorted(set(indexes(plan[0]["Plan"])))
    assert plans == {
        "true": ["created_at"],
        "user_id = 'user 7'": ["user_id_created_at"],
        "agent_name = 'agent 7'": ["agent_name_created_at"],
        "status = 'timeout'": ["status_created_at"],
        "status IN ('failure', 'timeout', 'crashed')": ["status_created_at"],
        "trace_id = 't7'": ["pkey"],
    }
