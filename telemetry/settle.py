"""Settling: steps are the truth, and the totals of executions are recomputed from them where something came late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .rollup import KEY, ROLLUP_COLUMNS, TOKENS

if TYPE_CHECKING:
    import psycopg

# Two that settle a trace at the same time would each leave out what the other is about to commit.
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('spanledger_settle'))"

_SETTLED = (*TOKENS, "cost_usd", "cost_total_usd", "cost_source")
# Own usage from the execution's own steps; totals from those of every execution below it. Idempotent: it sets what
# the steps say, whatever was there before. UNION, not UNION ALL: a sender may say that spans are each other's parents.
# What changed is a delta of the roll-up.
_SETTLE = f"""
WITH RECURSIVE own AS (
    SELECT e.trace_id, e.span_id, e.created_at, e.parent_agent_span_id,
           coalesce(sum(s.input_tokens), 0) AS input_tokens,
           coalesce(sum(s.cache_read_tokens), 0) AS cache_read_tokens,
           coalesce(sum(s.cache_write_tokens), 0) AS cache_write_tokens,
           coalesce(sum(s.output_tokens), 0) AS output_tokens,
           coalesce(sum(s.reasoning_tokens), 0) AS reasoning_tokens,
           sum(s.cost_usd) AS cost_usd,
           array_agg(DISTINCT s.cost_source) FILTER (WHERE s.cost_source IS NOT NULL) AS sources
    FROM agent_executions e
    LEFT JOIN execution_steps s ON s.trace_id = e.trace_id AND s.agent_span_id = e.span_id
    WHERE e.trace_id = ANY(%(traces)s)
    GROUP BY e.trace_id, e.span_id, e.created_at, e.parent_agent_span_id
), below AS (
    SELECT trace_id, span_id AS top, span_id FROM own
    UNION
    SELECT o.trace_id, b.top, o.span_id
    FROM below b JOIN own o ON o.trace_id = b.trace_id AND o.parent_agent_span_id = b.span_id
), total AS (
    SELECT b.trace_id, b.top, sum(o.input_tokens + o.output_tokens) AS tokens, sum(o.cost_usd) AS cost_usd
    FROM below b JOIN own o ON o.trace_id = b.trace_id AND o.span_id = b.span_id
    GROUP BY b.trace_id, b.top
), sources AS (
    SELECT b.trace_id, b.top, array_agg(DISTINCT source) AS sources
    FROM below b JOIN own o ON o.trace_id = b.trace_id AND o.span_id = b.span_id
    CROSS JOIN LATERAL unnest(o.sources) AS source
    GROUP BY b.trace_id, b.top
), settled AS (
    SELECT o.trace_id, o.span_id, o.created_at,
           o.input_tokens + o.output_tokens AS tokens_used,
           o.input_tokens, o.cache_read_tokens, o.cache_write_tokens, o.output_tokens, o.reasoning_tokens,
           t.tokens AS tokens_total,
           o.cost_usd,
           t.cost_usd AS cost_total_usd,
           CASE
               WHEN sources.sources[2] IS NULL THEN sources.sources[1]
               WHEN sources.sources && ARRAY['unknown', 'partial'] THEN 'partial'
               ELSE 'mixed'
           END AS cost_source
    FROM own o
    JOIN total t ON t.trace_id = o.trace_id AND t.top = o.span_id
    LEFT JOIN sources ON sources.trace_id = o.trace_id AND sources.top = o.span_id
), changed AS (
    UPDATE agent_executions e
    SET {", ".join(f"{name} = s.{name}" for name in _SETTLED)}
    FROM settled s JOIN agent_executions was USING (trace_id, span_id, created_at)
    WHERE e.trace_id = s.trace_id AND e.span_id = s.span_id AND e.created_at = s.created_at
      AND ({", ".join(f"was.{name}" for name in _SETTLED)})
          IS DISTINCT FROM ({", ".join(f"s.{name}" for name in _SETTLED)})
    RETURNING date_trunc('hour', e.created_at, 'UTC'), spanledger_duration_le(e.execution_time_ms),
              {", ".join(f"e.{name}" for name in KEY)}, 0, 0,
              {", ".join(f"e.{name} - was.{name}" for name in TOKENS)},
              coalesce(e.cost_usd, 0) - coalesce(was.cost_usd, 0),
              num_nonnulls(e.cost_usd) - num_nonnulls(was.cost_usd),
              spanledger_unpriced(e.cost_usd, e.cost_source, e.tokens_used)::integer
              - spanledger_unpriced(was.cost_usd, was.cost_source, was.tokens_used)::integer
)
INSERT INTO execution_rollup ({", ".join(ROLLUP_COLUMNS)}) SELECT * FROM changed
"""


def settle(connection: psycopg.Connection[Any], traces: list[str]) -> None:
    """Recompute usage and cost of the executions of these traces from their steps, roll-up included.

    In a transaction: the open one, or one of its own.

    Raises:
        psycopg.DataError: A sum is beyond what its column holds; nothing was changed.
    """
    if traces:
        with connection.transaction():
            connection.execute(_LOCK)
            connection.execute(_SETTLE.encode(), {"traces": traces})
