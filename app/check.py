"""`spanledger check`: do rows, steps and the roll-up say the same, and with --repair, make them."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple, cast

import orjson
import psycopg
from sqlalchemy import Row, text

from app import rollup
from app.database import Database
from telemetry import settle

SHOWN = 20
"""Traces and hours of each kind that are printed one by one."""

# Of each trace that began after `since`: own usage over its executions, totals over its topmost ones (of those stored:
# the ones above may still run), usage over the steps of stored executions.
UNSETTLED = """
WITH execution AS (
    SELECT trace_id, span_id, parent_agent_span_id, started_at, tokens_used, tokens_total, cost_usd, cost_total_usd
    FROM agent_executions WHERE created_at >= :since
), own AS (
    SELECT trace_id, sum(tokens_used) AS tokens, coalesce(sum(cost_usd), 0) AS cost
    FROM execution GROUP BY trace_id HAVING min(started_at) >= :since
), top AS (
    SELECT trace_id, sum(tokens_total) AS tokens, coalesce(sum(cost_total_usd), 0) AS cost
    FROM execution e
    WHERE NOT EXISTS (SELECT FROM execution p WHERE p.trace_id = e.trace_id AND p.span_id = e.parent_agent_span_id)
    GROUP BY trace_id
), step AS (
    SELECT trace_id, sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)) AS tokens,
           coalesce(sum(cost_usd), 0) AS cost
    FROM execution_steps s
    WHERE created_at >= :since
      AND EXISTS (SELECT FROM execution e WHERE e.trace_id = s.trace_id AND e.span_id = s.agent_span_id)
    GROUP BY trace_id
)
SELECT trace_id, own.tokens AS own_tokens, coalesce(top.tokens, 0) AS total_tokens,
       coalesce(step.tokens, 0) AS step_tokens,
       own.cost AS own_cost_usd, coalesce(top.cost, 0) AS total_cost_usd, coalesce(step.cost, 0) AS step_cost_usd
FROM own LEFT JOIN top USING (trace_id) LEFT JOIN step USING (trace_id)
WHERE (own.tokens, own.cost, own.tokens, own.cost) IS DISTINCT FROM
      (coalesce(top.tokens, 0), coalesce(top.cost, 0), coalesce(step.tokens, 0), coalesce(step.cost, 0))
ORDER BY trace_id
"""


class Report(NamedTuple):
    """What differs; nothing is what is wanted."""

    traces: list[Row[Any]]
    hours: list[rollup.Difference]

    def __bool__(self) -> bool:
        return bool(self.traces or self.hours)

    def to_json(self) -> str:
        """All of it; sums are strings, for they have every digit."""
        hours = [difference._asdict() for difference in self.hours]
        content = {"agrees": not self, "traces": [row._asdict() for row in self.traces], "hours": hours}
        return orjson.dumps(content, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()

    def to_text(self) -> str:
        """A line for each trace and hour, the first of them."""
        if not self:
            return "Rows, steps and the roll-up agree."
        lines = [f"{len(self.traces)} traces whose sums differ: own over executions, totals of roots, steps"]
        lines += [
            f"  {row.trace_id}  tokens {row.own_tokens} {row.total_tokens} {row.step_tokens}"
            f"  USD {row.own_cost_usd} {row.total_cost_usd} {row.step_cost_usd}"
            for row in self.traces[:SHOWN]
        ]
        lines += [f"{len(self.hours)} hours whose roll-up differs from the rows"]
        lines += [
            f"  {hour:%Y-%m-%d %H}:00Z  {keys} keys: {_sums(said, true)}"
            for hour, keys, said, true in self.hours[:SHOWN]
        ]
        return "\n".join(lines)


def check(database: Database, since: datetime) -> Report:
    """Compare what ended at `since`, a full hour, or later.

    Raises:
        DatabaseUnavailable: Postgres cannot be reached.
    """
    with database.connect("spanledger_admin") as connection:
        traces = connection.execute(text(UNSETTLED), {"since": since}).all()
    return Report(list(traces), rollup.differences(database, since))


def repair(database: Database, report: Report, since: datetime) -> Report:
    """Settle the traces from their steps, rebuild the hours from their rows; what differs after that.

    Raises:
        DatabaseUnavailable: Postgres cannot be reached.
    """
    for row in report.traces:
        with database.connect("spanledger_sink") as connection, suppress(psycopg.DataError):  # a sum no column holds
            settle(cast("psycopg.Connection[Any]", connection.connection.driver_connection), [row.trace_id])
    for difference in report.hours:
        rollup.rebuild(database, difference.hour)
    return check(database, since)


def _sums(said: dict[str, Any], true: dict[str, Any]) -> str:
    found = [f"{name} {said[name]} for {true[name]}" for name in rollup.SUMS if said[name] != true[name]]
    return ", ".join(found) or "each the other's"
