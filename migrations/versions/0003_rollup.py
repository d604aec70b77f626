"""execution_rollup: executions added up per hour, appended by the sink, so that long ranges cost hours, not rows."""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "0003"
down_revision = "0002"

KEY = "service_name, environment, agent_name, model_used, status, is_root"
TOKENS = (
    "tokens_used, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, tokens_total"
)
COLUMNS = f"hour, duration_le, {KEY}, executions, execution_time_ns, {TOKENS}, cost_usd, priced, unpriced"

# hour           when they ended (created_at), UTC
# duration_le    upper bound in seconds of the bucket of the duration, as in Prometheus' `le`
# execution_time_ns, tokens, cost_usd   sums; numeric, so that they are exact and hold whatever their parts held
# priced         executions whose cost_usd is known, in part at least: 0 means that the sum is NULL, not 0
# unpriced       executions whose cost was more than is known
# folded         added up from deltas of an hour that is over
# Readers sum over the rows of a key. A delta of a late correction has no executions, and may be negative.
ROLLUP = """
CREATE TABLE execution_rollup (
    hour timestamptz NOT NULL,
    duration_le double precision NOT NULL,
    service_name text NOT NULL,
    environment text,
    agent_name text NOT NULL,
    model_used text,
    status text NOT NULL,
    is_root boolean NOT NULL,
    executions bigint NOT NULL,
    execution_time_ns numeric NOT NULL,
    tokens_used numeric NOT NULL,
    input_tokens numeric NOT NULL,
    cache_read_tokens numeric NOT NULL,
    cache_write_tokens numeric NOT NULL,
    output_tokens numeric NOT NULL,
    reasoning_tokens numeric NOT NULL,
    tokens_total numeric NOT NULL,
    cost_usd numeric NOT NULL,
    priced bigint NOT NULL,
    unpriced bigint NOT NULL,
    folded boolean NOT NULL DEFAULT false
)
"""
INDEX = "CREATE INDEX execution_rollup_hour ON execution_rollup (hour)"

# The bounds of gen_ai_invoke_agent_duration_seconds. width_bucket counts bounds <= its operand, `le` those below it:
# the same on the negative side.
DURATION_LE = """
CREATE FUNCTION spanledger_duration_le(ms double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (ARRAY[0.1, 0.2, 0.4, 0.5, 0.8, 1, 1.6, 2.5, 3.2, 5, 6.4, 10, 12.8, 25.6, 30, 51.2, 60, 102.4, 204.8, 409.6,
              900, 1800, 3600, 'Infinity']::double precision[])[
    24 - width_bucket(-ms, ARRAY[-3600000, -1800000, -900000, -409600, -204800, -102400, -60000, -51200, -30000,
         -25600, -12800, -10000, -6400, -5000, -3200, -2500, -1600, -1000, -800, -500, -400, -200, -100
         ]::double precision[])]
"""
UNPRICED = """
CREATE FUNCTION spanledger_unpriced(cost_usd numeric, cost_source text, tokens_used bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(cost_source IN ('unknown', 'partial'), false) OR (cost_usd IS NULL AND tokens_used > 0)
"""
OF_ROWS = f"""
CREATE FUNCTION spanledger_rollup_of_rows(since timestamptz, until timestamptz) RETURNS SETOF execution_rollup
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT date_trunc('hour', created_at, 'UTC'), spanledger_duration_le(execution_time_ms), {KEY},
        count(*), sum(round(execution_time_ms * 1e6)::bigint),
        {", ".join(f"sum({name})" for name in TOKENS.split(", "))},
        coalesce(sum(cost_usd), 0), count(cost_usd),
        count(*) FILTER (WHERE spanledger_unpriced(cost_usd, cost_source, tokens_used)), true
    FROM agent_executions
    WHERE created_at >= since AND created_at < until
    GROUP BY 1, 2, {KEY};
END
"""
FUNCTIONS = "spanledger_duration_le, spanledger_unpriced, spanledger_rollup_of_rows"

# What cannot be added up is refused (NaN is greater than every number). Not validated: that would read every row.
FINITE = {
    "agent_executions": "abs(execution_time_ms) < 9e12 AND abs(cost_usd) < 1e15 AND abs(cost_total_usd) < 1e15",
    "execution_steps": "abs(duration_ms) < 9e12 AND abs(cost_usd) < 1e15",
}

GRANTS = {
    "spanledger_sink": (
        "GRANT SELECT, INSERT, DELETE ON execution_rollup TO spanledger_sink",
        f"GRANT SELECT ({KEY}, execution_time_ms) ON agent_executions TO spanledger_sink",
        f"GRANT EXECUTE ON FUNCTION {FUNCTIONS} TO spanledger_sink",
    ),
    "spanledger_admin": (
        "GRANT SELECT ON execution_rollup TO spanledger_admin",
        f"GRANT EXECUTE ON FUNCTION {FUNCTIONS} TO spanledger_admin",
    ),
    "spanledger_grafana": ("GRANT SELECT ON execution_rollup TO spanledger_grafana",),
}


def upgrade() -> None:
    for statement in (ROLLUP, INDEX, DURATION_LE, UNPRICED, OF_ROWS):
        op.execute(text(statement))
    op.execute(f"REVOKE ALL ON FUNCTION {FUNCTIONS} FROM PUBLIC")
    op.execute("INSERT INTO execution_rollup SELECT * FROM spanledger_rollup_of_rows('-infinity', 'infinity')")
    for role in filter(exists, GRANTS):
        for grant in GRANTS[role]:
            op.execute(grant)
    for table, condition in FINITE.items():  # last: it locks out readers and writers until the end
        op.execute(f"ALTER TABLE {table} ADD CONSTRAINT finite CHECK ({condition}) NOT VALID")


def downgrade() -> None:
    for table in FINITE:
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT finite")
    if exists("spanledger_sink"):
        op.execute(f"REVOKE SELECT ({KEY}, execution_time_ms) ON agent_executions FROM spanledger_sink")
        # is_root is in the grant of the release before, too.
        op.execute("GRANT SELECT (is_root) ON agent_executions TO spanledger_sink")
    op.execute("DROP FUNCTION spanledger_rollup_of_rows, spanledger_unpriced, spanledger_duration_le")
    op.execute("DROP TABLE execution_rollup")


def exists(role: str) -> bool:
    return bool(op.get_bind().scalar(text("SELECT to_regrole(:role) IS NOT NULL"), {"role": role}))
