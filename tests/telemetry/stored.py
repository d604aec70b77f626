"""Rows with fixed ids on their way into a real Postgres, for the tests of spool, sink and settling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import text

from app.database import Database
from telemetry.caller import Caller
from telemetry.execution import Execution, Identity, Service, Step
from telemetry.guard import Guard
from telemetry.semconv import Status
from telemetry.sink import PostgresSink
from telemetry.spool import EXECUTIONS, STEPS, Spool
from telemetry.usage import NONE, Usage

TRACE = "0af7651916cd43dd8448eb211c80319c"
OTHER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
END = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
START = END - timedelta(seconds=1, microseconds=500)
SERVICE = Service("tutor", "school", "1.2", "test", "i-1")


def nanoseconds(moment: datetime) -> int:
    """Since the epoch, exactly."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def identity(span_id: str, end: datetime = END, **values: Any) -> Identity:
    return Identity(
        **{
            "trace_id": TRACE,
            "span_id": span_id,
            "parent_span_id": None,
            "start_time": nanoseconds(end) - nanoseconds(END) + nanoseconds(START),
            "end_time": nanoseconds(end),
            "status": Status.SUCCESS,
            "error_type": None,
            "error_message": None,
            "time_to_first_chunk": None,
            "caller": Caller("u1", "s1", "r1"),
            "service": SERVICE,
            "attributes": b"{}",
        }
        | values
    )


_IDENTITY = frozenset(Identity._fields) | {"end"}


def execution(span_id: str = "00000000000000a1", **values: Any) -> Execution:
    """An execution of 1.0005 s that ended at END; `values` are fields of it or of its identity."""
    own = {name: value for name, value in values.items() if name not in _IDENTITY}
    defaults = {
        "agent_name": "tutor",
        "agent_version": None,
        "parent_agent_span_id": None,
        "own": NONE,
        "total": own.get("own", NONE),
        "model": None,
        "provider": None,
        "late": False,
        "input": None,
        "output": None,
    }
    return Execution(identity(span_id, **{name: values[name] for name in values.keys() - own}), **(defaults | own))


def step(span_id: str = "00000000000000b1", **values: Any) -> Step:
    """A model call of the execution …a1; `values` are fields of it or of its identity."""
    own = {name: value for name, value in values.items() if name not in _IDENTITY}
    defaults = {
        "operation": "chat",
        "agent_name": "tutor",
        "agent_span_id": "00000000000000a1",
        "tool_name": None,
        "request_model": None,
        "response_model": None,
        "provider": None,
        "usage": None,
        "late": False,
        "input": None,
        "output": None,
    }
    return Step(identity(span_id, **{name: values[name] for name in values.keys() - own}), **(defaults | own))


# What Postgres holds of `execution()` and `step()`.
EXECUTION_ROW: dict[str, Any] = {
    "trace_id": TRACE,
    "span_id": "00000000000000a1",
    "parent_span_id": None,
    "parent_agent_span_id": None,
    "started_at": START,
    "created_at": END,
    "late": False,
    "is_root": True,
    "status": "success",
    "agent_name": "tutor",
    "agent_version": None,
    "user_id": "u1",
    "session_id": "s1",
    "request_id": "r1",
    "service_name": "tutor",
    "service_namespace": "school",
    "service_version": "1.2",
    "environment": "test",
    "instance_id": "i-1",
    "execution_time_ms": 1000.5,
    "time_to_first_chunk_ms": None,
    "tokens_used": 0,
    "input_tokens": 0,
    "cache_read_tokens": 0,
    "cache_write_tokens": 0,
    "output_tokens": 0,
    "reasoning_tokens": 0,
    "tokens_total": 0,
    "model_used": None,
    "provider": None,
    "cost_usd": None,
    "cost_total_usd": None,
    "cost_source": None,
    "error_type": None,
    "error_message": None,
    "attributes": {},
    "input_data": None,
    "output_data": None,
}
STEP_ROW: dict[str, Any] = {
    "trace_id": TRACE,
    "span_id": "00000000000000b1",
    "parent_span_id": None,
    "agent_span_id": "00000000000000a1",
    "started_at": START,
    "created_at": END,
    "late": False,
    "operation": "chat",
    "status": "success",
    "agent_name": "tutor",
    "user_id": "u1",
    "session_id": "s1",
    "request_id": "r1",
    "service_name": "tutor",
    "service_namespace": "school",
    "service_version": "1.2",
    "environment": "test",
    "instance_id": "i-1",
    "duration_ms": 1000.5,
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
    "attributes": {},
    "input_data": None,
    "output_data": None,
}


def usage(tokens: int, cost: str | None = None, source: str = "local") -> Usage:
    """`tokens` of input and as many of output."""
    if cost is None:
        return Usage(tokens, 0, 0, tokens, 0, None, "unknown")
    return Usage(tokens, 0, 0, tokens, 0, Decimal(cost), source)


def rows(database: Database, table: str) -> list[dict[str, Any]]:
    """All of a table (`executions` or `steps`), whole, by span id."""
    name = {EXECUTIONS: "agent_executions", STEPS: "execution_steps"}[table]
    with database.connect("spanledger_admin") as connection:
        found = connection.execute(text(f"SELECT * FROM {name} ORDER BY span_id, created_at"))
        return [dict(row) for row in found.mappings()]


class Sink(PostgresSink):
    """A sink with a spool and a guard of its own."""

    def __init__(self, directory: Path, connect: Callable[[], psycopg.Connection[Any]], **options: Any) -> None:
        self.spool = Spool(directory)
        self.guard = Guard()
        super().__init__(self.spool, connect, self.guard, **options)

    def put(self, *rows: Execution | Step) -> None:
        """Write rows to the spool."""
        for row in rows:
            self.spool.append(EXECUTIONS if isinstance(row, Execution) else STEPS, row.line())


@contextmanager
def sink(directory: Path, connect: Callable[[], psycopg.Connection[Any]], **options: Any) -> Iterator[Sink]:
    """A sink whose thread is not started; stopped at the end."""
    made = Sink(directory, connect, **options)
    try:
        yield made
    finally:
        made.stop(0.0)
        made.spool.close()
