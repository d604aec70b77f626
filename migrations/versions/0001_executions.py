"""agent_executions and execution_steps: partitioned by day, and what dashboards see of them."""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "0001"
down_revision = None

TABLES = ("agent_executions", "execution_steps")
TEXT_PAYLOADS = ("error_message", "attributes", "input_data", "output_data")

EXECUTIONS = """
CREATE TABLE agent_executions (
    trace_id text NOT NULL,
    span_id text NOT NULL,
    parent_span_id text,
    parent_agent_span_id text,
    started_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    late boolean NOT NULL DEFAULT false,
    is_root boolean NOT NULL,
    status text NOT NULL
        CHECK (status IN ('success', 'failure', 'timeout', 'cancelled', 'crashed', 'rejected')),
    agent_name text NOT NULL,
    agent_version text,
    user_id text,
    session_id text,
    request_id text,
    service_name text NOT NULL,
    service_namespace text,
    service_version text,
    environment text,
    instance_id text,
    execution_time_ms double precision NOT NULL,
    time_to_first_chunk_ms double precision,
    tokens_used bigint NOT NULL,
    input_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    tokens_total bigint NOT NULL,
    model_used text,
    provider text,
    cost_usd numeric,
    cost_total_usd numeric,
    cost_source text,
    error_type text,
    error_message text,
    attributes jsonb NOT NULL,
    input_data text,
    output_data text,
    PRIMARY KEY (trace_id, span_id, created_at)
) PARTITION BY RANGE (created_at)
"""

STEPS = """
CREATE TABLE execution_steps (
    trace_id text NOT NULL,
    span_id text NOT NULL,
    parent_span_id text,
    agent_span_id text,
    started_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    late boolean NOT NULL DEFAULT false,
    operation text NOT NULL,
    status text NOT NULL
        CHECK (status IN ('success', 'failure', 'timeout', 'cancelled', 'crashed', 'rejected')),
    agent_name text,
    user_id text,
    session_id text,
    request_id text,
    service_name text NOT NULL,
    service_namespace text,
    service_version text,
    environment text,
    instance_id text,
    duration_ms double precision NOT NULL,
    time_to_first_chunk_ms double precision,
    tool_name text,
    request_model text,
    response_model text,
    provider text,
    input_tokens bigint,
    cache_read_tokens bigint,
    cache_write_tokens bigint,
    output_tokens bigint,
    reasoning_tokens bigint,
    cost_usd numeric,
    cost_source text,
    error_type text,
    error_message text,
    attributes jsonb NOT NULL,
    input_data text,
    output_data text,
    PRIMARY KEY (trace_id, span_id, created_at)
) PARTITION BY RANGE (created_at)
"""

# Keyset pages walk these backwards; rows of one created_at are few and sorted as they come: no ids in them.
# NULL users and successes, the bulk of all rows, cost the partial ones nothing.
# Steps are read by trace (the primary key); BRIN serves sums over a range at 1/400 of a B-tree's size.
INDEXES = (
    "CREATE INDEX agent_executions_created_at ON agent_executions (created_at)",
    "CREATE INDEX agent_executions_agent ON agent_executions (agent_name, created_at)",
    "CREATE INDEX agent_executions_user ON agent_executions (user_id, created_at) WHERE user_id IS NOT NULL",
    "CREATE INDEX agent_executions_status ON agent_executions (status, created_at) WHERE status <> 'success'",
    "CREATE INDEX execution_steps_created_at ON execution_steps"
    " USING brin (created_at) WITH (pages_per_range = 32, autosummarize = on)",
)

# LIKE and ATTACH instead of PARTITION OF: the latter locks the parent against every reader and writer.
ENSURE_PARTITIONS = """
CREATE FUNCTION spanledger_ensure_partitions(first_day date, days integer DEFAULT 1) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today CONSTANT date := (now() AT TIME ZONE 'UTC')::date;
    parent text;
    name text;
    partition text;
    made integer := 0;
BEGIN
    IF (days BETWEEN 1 AND 408 AND first_day BETWEEN today - 400 AND today + 8 - days) IS NOT TRUE THEN
        RAISE EXCEPTION 'no partitions for % day(s) from %: only days from % to % are accepted',
            days, first_day, today - 400, today + 7 USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR day IN 0 .. days - 1 LOOP
        FOREACH parent IN ARRAY ARRAY['agent_executions', 'execution_steps'] LOOP
            name := parent || to_char(first_day + day, '_YYYYMMDD');
            partition := format('%I.%I', {schema_literal}, name);
            CONTINUE WHEN to_regclass(partition) IS NOT NULL;
            PERFORM pg_advisory_xact_lock(hashtext('spanledger_ensure_partitions'));
            -- Not to_regclass: it would answer from its cache, as before the wait.
            CONTINUE WHEN EXISTS (
                SELECT FROM pg_class WHERE relname = name AND relnamespace = {schema_literal}::regnamespace
            );
            EXECUTE format('CREATE TABLE %s (LIKE %I.%I INCLUDING ALL) WITH (toast_tuple_target = 8160)',
                partition, {schema_literal}, parent);
            EXECUTE format('ALTER TABLE %I.%I ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                {schema_literal}, parent, partition,
                (first_day + day)::text || ' 00:00:00+00', (first_day + day + 1)::text || ' 00:00:00+00');
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$
"""

# No input, output, error text or attributes: who reads dashboards learns how agents do, not what users said.
USER_HASH = "encode(sha256(convert_to(user_id, 'UTF8')), 'hex') AS user_id"
GRAFANA_EXECUTIONS = f"""
CREATE VIEW grafana_executions AS SELECT
    trace_id, span_id, parent_span_id, parent_agent_span_id, started_at, created_at, late, is_root, status,
    agent_name, agent_version, {USER_HASH}, session_id, request_id,
    service_name, service_namespace, service_version, environment, instance_id,
    execution_time_ms, time_to_first_chunk_ms,
    tokens_used, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
    tokens_total, model_used, provider, cost_usd, cost_total_usd, cost_source, error_type
FROM agent_executions
"""
GRAFANA_STEPS = f"""
CREATE VIEW grafana_steps AS SELECT
    trace_id, span_id, parent_span_id, agent_span_id, started_at, created_at, late, operation, status,
    agent_name, {USER_HASH}, session_id, request_id,
    service_name, service_namespace, service_version, environment, instance_id,
    duration_ms, time_to_first_chunk_ms, tool_name, request_model, response_model, provider,
    input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
    cost_usd, cost_source, error_type
FROM execution_steps
"""


def upgrade() -> None:
    bind = op.get_bind()
    schema_literal = bind.scalar(text("SELECT quote_literal(current_schema())"))
    has_lz4 = bind.scalar(
        text("SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = 'default_toast_compression'")
    )

    for statement in (EXECUTIONS, STEPS, *INDEXES):
        op.execute(statement)
    for table in TABLES:
        if has_lz4:
            for column in TEXT_PAYLOADS:
                op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET COMPRESSION lz4")
    op.execute(GRAFANA_EXECUTIONS)
    op.execute(GRAFANA_STEPS)
    op.execute(ENSURE_PARTITIONS.replace("{schema_literal}", str(schema_literal)))
    op.execute("REVOKE ALL ON FUNCTION spanledger_ensure_partitions FROM PUBLIC")
    op.execute("SELECT spanledger_ensure_partitions((now() AT TIME ZONE 'UTC')::date - 1, 9)")


def downgrade() -> None:
    op.execute("DROP VIEW grafana_executions, grafana_steps")
    op.execute("DROP TABLE agent_executions, execution_steps")
    op.execute("DROP FUNCTION spanledger_ensure_partitions")
