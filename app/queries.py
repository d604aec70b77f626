"""What the admin endpoints ask Postgres. The definitions of every number are in docs/api.md."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
from sqlalchemy import Connection, Select, Table, Text, cast, func, select
from sqlalchemy.exc import ProgrammingError

from app.auth import NO_STORE
from app.database import Database, DatabaseUnavailable
from app.pagination import Page, fetch, newest_first
from app.problems import Problem
from app.responses import stored_json
from app.schemas import FAILED, ExecutionFilters, ExecutionSummary
from app.tables import agent_executions, execution_steps

STATEMENT_TIMEOUT_SECONDS = 15
RETRY_AFTER_SECONDS = 5
JSON_TEXT = ("attributes", "input_data", "output_data")
PARTS_MAX = 1000
"""Most steps, and most children, of one execution in one answer."""

Record = dict[str, Any]

logger = logging.getLogger(__name__)

_runs = agent_executions.c
_steps = execution_steps.c


def utc_now() -> datetime:
    """The clock of the admin endpoints."""
    return datetime.now(UTC)


@contextmanager
def reading(database: Database) -> Iterator[Connection]:
    """A transaction of the admin role, whose statements have 15 s each.

    Raises:
        Problem: 503, Postgres is away, not yet migrated, or took too long.
    """
    try:
        with database.connect("spanledger_admin") as connection:
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_SECONDS}s'")
            yield connection
    except (DatabaseUnavailable, ProgrammingError) as error:
        cause = error.orig if isinstance(error, ProgrammingError) else getattr(error.__cause__, "orig", error)
        if isinstance(error, ProgrammingError) and not isinstance(cause, psycopg.errors.UndefinedTable):
            raise
        if isinstance(cause, psycopg.errors.QueryCanceled):
            advice = "The database took too long. Ask for a shorter range of time or fewer rows."
        else:
            advice = "The database cannot be read now. Nothing is lost: rows wait in the spool. Try again."
        logger.warning("admin request not answered: %s", str(error).splitlines()[0])
        headers = NO_STORE | {"Retry-After": str(RETRY_AFTER_SECONDS)}
        raise Problem(503, "Service Unavailable", advice, headers=headers) from error


def metrics(connection: Connection, since: datetime) -> Record:
    """The totals of what ended at `since` or later, and each agent's own."""
    groups = _groups(connection, since)
    agents = defaultdict(list)
    for group in groups:
        agents[group["agent_name"]].append(group)
    return {**_totals(groups), "agent_metrics": {name: _agent(agents[name]) for name in sorted(agents)}}


def totals(connection: Connection, since: datetime, user_id: str) -> Record:
    """The totals of one user."""
    return _totals(_groups(connection, since, user_id))


def errors(connection: Connection, since: datetime, limit: int) -> list[Record]:
    """The newest failed executions, summarised."""
    query = _summaries().where(_runs.created_at >= since, _runs.status.in_(FAILED))
    return _records(connection, newest_first(query, agent_executions).limit(limit))


def user_activity(connection: Connection, user_id: str, since: datetime, limit: int) -> list[Record]:
    """The newest executions of a user, summarised."""
    query = _summaries().where(_runs.created_at >= since, _runs.user_id == user_id)
    return _records(connection, newest_first(query, agent_executions).limit(limit))


def executions(connection: Connection, filters: ExecutionFilters, since: datetime) -> Page:
    """A page of whole executions, newest first; `from` of `filters` may be later than `since`, not earlier.

    Raises:
        Problem: 400, the cursor is not one for these filters.
    """
    query = _whole(agent_executions).where(_runs.created_at >= max(filters.from_ or since, since))
    if filters.to is not None:
        query = query.where(_runs.created_at < filters.to)
    if filters.agent:
        query = query.where(_runs.agent_name.in_(filters.agent))
    if filters.status:
        query = query.where(_runs.status.in_(filters.status))
    for name in ("user_id", "session_id", "request_id", "trace_id"):
        if (value := getattr(filters, name)) is not None:
            query = query.where(_runs[name] == value)
    page = fetch(
        connection,
        query,
        agent_executions,
        limit=filters.limit,
        cursor=filters.cursor,
        filters=filters.fingerprint(),
    )
    return page._replace(rows=[_record(row) for row in page.rows])


def execution(connection: Connection, trace_id: str, span_id: str) -> Record | None:
    """One execution whole, with its steps and the executions it called; None where it is not stored.

    No range of time: these are look-ups by key, an index probe in each partition, and a child's clock or a
    late step can be anywhere.
    """
    own = _whole(agent_executions).where(_runs.trace_id == trace_id, _runs.span_id == span_id)
    found = _records(connection, newest_first(own, agent_executions).limit(1))
    if not found:
        return None
    steps = _whole(execution_steps).where(_steps.trace_id == trace_id, _steps.agent_span_id == span_id)
    children = _summaries().where(_runs.trace_id == trace_id, _runs.parent_agent_span_id == span_id)
    parts = {
        "steps": _records(connection, _by_start(steps, execution_steps)),
        "children": _records(connection, _by_start(children, agent_executions)),
    }
    truncated = any(len(part) > PARTS_MAX for part in parts.values())
    return {
        **found[0],
        **{name: part[:PARTS_MAX] for name, part in parts.items()},
        "truncated": truncated,
    }


def oldest(now: datetime, retention_days: int) -> datetime:
    """The beginning of everything that is kept: older partitions are about to be dropped."""
    return now - timedelta(days=retention_days)


def _whole(table: Table) -> Select[Any]:
    """Every column; jsonb as text, since its numbers may have more digits than a parser keeps."""
    return select(*(cast(c, Text).label(c.name) if c.name == "attributes" else c for c in table.c))


def _summaries() -> Select[Any]:
    return select(*(_runs[name] for name in ExecutionSummary.model_fields))


def _by_start(query: Select[Any], table: Table) -> Select[Any]:
    return query.order_by(table.c.started_at, table.c.span_id).limit(PARTS_MAX + 1)


def _records(connection: Connection, query: Select[Any]) -> list[Record]:
    return [_record(row._asdict()) for row in connection.execute(query)]


def _record(row: Record) -> Record:
    # SQLAlchemy names columns with a subclass of str, which orjson refuses as a key.
    return {str(name): stored_json(value) if name in JSON_TEXT else value for name, value in row.items()}


def _groups(connection: Connection, since: datetime, user_id: str | None = None) -> Sequence[Record]:
    """What all the numbers are added up from."""
    query = (
        select(
            _runs.agent_name,
            _runs.is_root,
            _runs.status,
            func.count().label("count"),
            func.sum(_runs.execution_time_ms).label("time_ms"),
            func.sum(_runs.tokens_used).label("tokens_used"),
            func.sum(_runs.tokens_total).label("tokens_total"),
            func.sum(_runs.cost_usd).label("cost_usd"),
            func.bool_or(
                func.coalesce(_runs.cost_source.in_(("unknown", "partial")), False)
                | (_runs.cost_usd.is_(None) & (_runs.tokens_used > 0))
            ).label("cost_unknown"),
        )
        .where(_runs.created_at >= since)
        .group_by(_runs.agent_name, _runs.is_root, _runs.status)
    )
    if user_id is not None:
        query = query.where(_runs.user_id == user_id)
    return [row._asdict() for row in connection.execute(query)]


def _totals(groups: Sequence[Record]) -> Record:
    outcome = _outcome([group for group in groups if group["is_root"]])
    return {
        "total_requests": outcome["count"],
        "successful": outcome["successful"],
        "failed": outcome["failed"],
        "cancelled": outcome["cancelled"],
        "rejected": outcome["rejected"],
        "success_rate": outcome["success_rate"],
        "avg_execution_time_ms": outcome["avg_time_ms"],
        "total_tokens_used": _sum(groups, "tokens_used"),
        "cost_usd": _cost(groups),
        "cost_complete": not any(group["cost_unknown"] for group in groups),
    }


def _agent(groups: Sequence[Record]) -> Record:
    outcome = _outcome(groups)
    return {
        "count": outcome["count"],
        "avg_time_ms": outcome["avg_time_ms"],
        "success_rate": outcome["success_rate"],
        "total_tokens": _sum(groups, "tokens_total"),
        "own_tokens": _sum(groups, "tokens_used"),
        "cancelled": outcome["cancelled"],
        "rejected": outcome["rejected"],
        "cost_usd": _cost(groups),
    }


def _outcome(groups: Sequence[Record]) -> Record:
    """How these ended. Only success and failure count; the mean is over the same executions as the rate."""
    count: Counter[str] = Counter()
    time_ms = 0.0
    for group in groups:
        count[group["status"]] += group["count"]
        if group["status"] in ("success", *FAILED):
            time_ms += group["time_ms"]
    failed = sum(count[status] for status in FAILED)
    total = count["success"] + failed
    return {
        "count": total,
        "successful": count["success"],
        "failed": failed,
        "cancelled": count["cancelled"],
        "rejected": count["rejected"],
        "success_rate": count["success"] / total if total else None,
        "avg_time_ms": time_ms / total if total else None,
    }


def _sum(groups: Sequence[Record], name: str) -> Decimal:
    return sum((group[name] for group in groups), Decimal(0))


def _cost(groups: Sequence[Record]) -> Decimal | None:
    known = [group["cost_usd"] for group in groups if group["cost_usd"] is not None]
    return sum(known, Decimal(0)) if known else None
