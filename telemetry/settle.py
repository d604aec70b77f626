"""Settling: steps are the truth, and the totals of executions are recomputed from them where something came late."""

from __future__ import annotations

from typing import Any

import psycopg

# Own usage from the execution's own steps; totals from those of every execution below it. Idempotent: it sets what
# the steps say, whatever was there before. UNION, not UNION ALL: a sender may say that spans are each other's parents.
_SETTLE = """
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
)
UPDATE agent_executions e
SET tokens_used = o.input_tokens + o.output_tokens,
    input_tokens = o.input_tokens,
    cache_read_tokens = o.cache_read_tokens,
    cache_write_tokens = o.cache_write_tokens,
    output_tokens = o.output_tokens,
    reasoning_tokens = o.reasoning_tokens,
    tokens_total = t.tokens,
    cost_usd = o.cost_usd,
    cost_total_usd = t.cost_usd,
    cost_source = CASE
        WHEN sources.sources[2] IS NULL THEN sources.sources[1]
        WHEN sources.sources && ARRAY['unknown', 'partial'] THEN 'partial'
        ELSE 'mixed'
    END
FROM own o
JOIN total t ON t.trace_id = o.trace_id AND t.top = o.span_id
LEFT JOIN sources ON sources.trace_id = o.trace_id AND sources.top = o.span_id
WHERE e.trace_id = o.trace_id AND e.span_id = o.span_id AND e.created_at = o.created_at
"""


def settle(connection: psycopg.Connection[Any], traces: list[str]) -> None:
    """Recompute usage and cost of the executions of these traces from their steps, in the open transaction."""
    if traces:
        connection.execute(_SETTLE, {"traces": traces})
