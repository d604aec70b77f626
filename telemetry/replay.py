"""Replay: rows of processes that only spool, observed where they are stored, as if their spans had ended here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any

import orjson

from . import copytext
from .caller import Caller
from .execution import EXECUTION_COLUMNS, STEP_COLUMNS, Execution, Identity, Service, Step
from .guard import Guard
from .metrics import Metrics
from .spool import EXECUTIONS
from .usage import NONE, Usage

Row = Mapping[str, str | None]

# Payloads come last and are not counted, so they are not read.
_EXECUTION_COLUMNS, _STEP_COLUMNS = (
    columns[: columns.index("attributes") + 1] for columns in (EXECUTION_COLUMNS, STEP_COLUMNS)
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Replay:
    """Makes the observations of spool lines."""

    def __init__(self, metrics: Metrics, guard: Guard) -> None:
        self._metrics = metrics
        self._guard = guard

    def observe(self, table: str, lines: Iterable[bytes]) -> None:
        """Observe each line once. Never raises: a line that cannot be read is reported, its row is stored."""
        for line in lines:
            try:
                if table == EXECUTIONS:
                    self._observe_execution(_row(_EXECUTION_COLUMNS, line))
                else:
                    self._metrics.observe_step(_step(_row(_STEP_COLUMNS, line)))
            except Exception:
                self._guard.report("metrics")

    def _observe_execution(self, row: Row) -> None:
        execution = _execution(row)
        self._metrics.know_agent(execution.identity.service, execution.agent_name)
        self._metrics.observe_execution(execution)
        attributes: dict[str, Any] = orjson.loads(execution.identity.attributes)
        self._metrics.observe_items(execution, attributes)


def _row(columns: tuple[str, ...], line: bytes) -> Row:
    return dict(zip(columns, copytext.values(line, len(columns)), strict=True))


def _execution(row: Row) -> Execution:
    return Execution(
        _identity(row, "execution_time_ms"),
        row["agent_name"] or "",
        row["agent_version"],
        row["parent_agent_span_id"],
        _usage(row) or NONE,
        NONE,  # totals are sums of other rows' own usage, and observed with those
        row["model_used"],
        row["provider"],
        row["late"] == "t",
        None,
        None,
    )


def _step(row: Row) -> Step:
    return Step(
        _identity(row, "duration_ms"),
        row["operation"] or "",
        row["agent_name"],
        row["agent_span_id"],
        row["tool_name"],
        row["request_model"],
        row["response_model"],
        row["provider"],
        _usage(row),
        row["late"] == "t",
        None,
        None,
    )


def _identity(row: Row, duration: str) -> Identity:
    ended = (datetime.fromisoformat(row["created_at"] or "") - _EPOCH) // _MICROSECOND * 1000
    first = row["time_to_first_chunk_ms"]
    return Identity(
        row["trace_id"] or "",
        row["span_id"] or "",
        row["parent_span_id"],
        # The duration is kept to the nanosecond, the two moments are not.
        ended - int(Decimal(row[duration] or 0) * 1_000_000),
        ended,
        row["status"] or "",
        row["error_type"],
        row["error_message"],
        None if first is None else float(first) / 1e3,
        Caller(row["user_id"], row["session_id"], row["request_id"]),
        _service(row["service_name"] or "", row["environment"]),
        (row["attributes"] or "{}").encode(),
    )


@lru_cache(maxsize=256)  # a key of every look-up of a metric; found by identity it costs less
def _service(name: str, environment: str | None) -> Service:
    """What labels tell of a service. Without its instance: each short job is one of its own."""
    return Service(name, None, None, environment, None)


def _usage(row: Row) -> Usage | None:
    if row["input_tokens"] is None:
        return None
    cost = row["cost_usd"]
    return Usage(
        int(row["input_tokens"]),
        int(row["cache_read_tokens"] or 0),
        int(row["cache_write_tokens"] or 0),
        int(row["output_tokens"] or 0),
        int(row["reasoning_tokens"] or 0),
        None if cost is None else Decimal(cost),
        row["cost_source"],
    )
