"""Rows put into Postgres directly, at fixed times, for the tests of what reads them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from app.database import Database

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
TRACE = "0af7651916cd43dd8448eb211c80319c"

_EXECUTION: dict[str, Any] = {
    "trace_id": TRACE,
    "parent_span_id": None,
    "parent_agent_span_id": None,
    "late": False,
    "status": "success",
    "agent_name": "main_orchestrator",
    "agent_version": None,
    "user_id": "u1",
    "session_id": None,
    "request_id": "r1",
    "service_name": "spanledger",
    "service_namespace": None,
    "service_version": None,
    "environment": None,
    "instance_id": None,
    "execution_time_ms": 1000.0,
    "time_to_first_chunk_ms": None,
    "tokens_used": 0,
    "input_tokens": 0,
    "cache_read_tokens": 0,
    "cache_write_tokens": 0,
    "output_tokens": 0,
    "reasoning_tokens": 0,
    "model_used": None,
    "provider": None,
    "cost_usd": None,
    "cost_total_usd": None,
    "cost_source": None,
    "error_type": None,
    "error_message": None,
    "attributes": "{}",
    "input_data": None,
    "output_data": None,
}
_STEP: dict[str, Any] = {
    "trace_id": TRACE,
    "parent_span_id": None,
    "agent_span_id": None,
    "late": False,
    "operation": "chat",
    "status": "success",
    "agent_name": "main_orchestrator",
    "user_id": "u1",
    "session_id": None,
    "request_id": "r1",
    "service_name": "spanledger",
    "service_namespace": None,
    "service_version": None,
    "environment": None,
    "instance_id": None,
    "duration_ms": 250.0,
    "time_to_first_chunk_ms": None,
    "tool_name": None,
    "request_model": None,
    "response_model": None,
    "provider": None,
    "input_tokens": None,
    "cache_read_tokens": None,
    "cache_write_tokens": None,
    "output_tokens": None,
    "reasoning_tokens": None,
    "cost_usd": None,
    "cost_source": None,
    "error_type": None,
    "error_message": None,
    "attributes": "{}",
    "input_data": None,
    "output_data": None,
}


class Rows:
    """Writes as the owner of the tables, whose rights no connection of the service has."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self._span_ids = (f"{number:016x}" for number in itertools.count(1))
        self._days: set[date] = set()

    def execution(self, **values: Any) -> dict[str, Any]:
        """A row of agent_executions, by default a request of one second that ended a minute before NOW."""
        values.setdefault("is_root", values.get("parent_agent_span_id") is None)
        values.setdefault("tokens_total", values.get("tokens_used", 0))
        return self._insert("agent_executions", _EXECUTION | values, "execution_time_ms")

    def step(self, **values: Any) -> dict[str, Any]:
        """A row of execution_steps."""
        return self._insert("execution_steps", _STEP | values, "duration_ms")

    def day(self, day: date) -> None:
        """Make the partitions of this day."""
        if day in self._days:
            return
        self._days.add(day)
        for table in ("agent_executions", "execution_steps"):
            self.connection.execute(
                sql.SQL("CREATE TABLE IF NOT EXISTS {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})").format(
                    sql.Identifier(f"{table}_{day:%Y%m%d}"),
                    sql.Identifier(table),
                    f"{day} 00:00:00+00",
                    f"{day + timedelta(days=1)} 00:00:00+00",
                )
            )

    def _insert(self, table: str, row: dict[str, Any], duration: str) -> dict[str, Any]:
        row.setdefault("span_id", next(self._span_ids))
        row.setdefault("created_at", NOW - timedelta(minutes=1))
        row.setdefault("started_at", row["created_at"] - timedelta(milliseconds=row[duration]))
        self.day(row["created_at"].astimezone(UTC).date())
        self.connection.execute(
            sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                sql.Identifier(table),
                sql.SQL(", ").join(map(sql.Identifier, row)),
                sql.SQL(", ").join(map(sql.Placeholder, row)),
            ),
            row,
        )
        return row


def as_json(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The row as an endpoint shows it."""
    times = {name: row[name].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") for name in ("created_at", "started_at")}
    return row | times | {"attributes": {}} | changes


@contextmanager
def writing(database: Database) -> Iterator[Rows]:
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        yield Rows(connection)
