"""agent_executions and execution_steps: partitioned by day, with roles and row-level security."""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "0001"
down_revision = None

ROLES = ("spanledger_sink", "spanledger_admin", "spanledger_reader", "spanledger_grafana")
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

# Roles belong to the whole cluster: another database of it may be making them at this moment.
ROLE = """
DO $$
BEGIN
    FOR attempt IN 1 .. 3 LOOP
        BEGIN
            IF to_regrole('{role}') IS NULL THEN
                CREATE ROLE {role} NOLOGIN;
            END IF;
            EXIT;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE WARNING 'role {role} is missing and % may not create it', current_user;
                EXIT;
            WHEN duplicate_object OR unique_violation THEN
                NULL;
        END;
    END LOOP;
    IF to_regrole('{role}') IS NULL OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        RETURN;
    END IF;
    BEGIN
        {membership}
    EXCEPTION
        WHEN insufficient_privilege THEN
            RAISE WARNING '% may not SET ROLE {role}: have it granted by an administrator', current_user;
        WHEN unique_violation OR internal_error THEN  -- another migration has just done it
            NULL;
    END;
END
$$
"""

# COPY FROM is refused where row-level security binds the role; without this the sink loads through INSERT.
BYPASS = """
DO $$
BEGIN
    IF NOT (SELECT rolbypassrls FROM pg_roles WHERE rolname = 'spanledger_sink') THEN
        ALTER ROLE spanledger_sink BYPASSRLS;
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'spanledger_sink stays under row-level security: it cannot COPY into the tables';
    WHEN internal_error THEN  -- "tuple concurrently updated": another database of the cluster was faster
        NULL;
END
$$
"""

SINK_EXECUTIONS_UPDATE = (
    "tokens_used, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, "
    "tokens_total, cost_usd, cost_total_usd, cost_source"
)
SINK_EXECUTIONS_SELECT = (
    "trace_id, span_id, parent_span_id, parent_agent_span_id, created_at, late, is_root, " + SINK_EXECUTIONS_UPDATE
)
SINK_STEPS_UPDATE = (
    "input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_usd, cost_source"
)
SINK_STEPS_SELECT = (
    f"trace_id, span_id, parent_span_id, agent_span_id, created_at, late, operation, {SINK_STEPS_UPDATE}"
)

GRANTS = {
    "spanledger_sink": (
        f"GRANT INSERT, SELECT ({SINK_EXECUTIONS_SELECT}), UPDATE ({SINK_EXECUTIONS_UPDATE})"
        " ON agent_executions TO spanledger_sink",
        f"GRANT INSERT, SELECT ({SINK_STEPS_SELECT}), UPDATE ({SINK_STEPS_UPDATE})"
        " ON execution_steps TO spanledger_sink",
        "GRANT EXECUTE ON FUNCTION spanledger_ensure_partitions TO spanledger_sink",
    ),
    "spanledger_admin": (
        "GRANT SELECT ON agent_executions, execution_steps, grafana_executions, grafana_steps,"
        " spanledger_alembic_version TO spanledger_admin",
        "GRANT EXECUTE ON FUNCTION spanledger_ensure_partitions TO spanledger_admin",
    ),
    "spanledger_reader": ("GRANT SELECT ON agent_executions, execution_steps TO spanledger_reader",),
    "spanledger_grafana": ("GRANT SELECT ON grafana_executions, grafana_steps TO spanledger_grafana",),
}

POLICIES = {
    "spanledger_sink": "FOR ALL TO spanledger_sink USING (true) WITH CHECK (true)",
    "spanledger_admin": "FOR SELECT TO spanledger_admin USING (true)",
    "spanledger_reader": "FOR SELECT TO spanledger_reader"
    " USING (user_id = nullif(current_setting('app.user_id', true), ''))",
}

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
    server_version = int(bind.scalar(text("SHOW server_version_num")) or 0)
    has_lz4 = bind.scalar(
        text("SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = 'default_toast_compression'")
    )

    for statement in (EXECUTIONS, STEPS, *INDEXES):
        op.execute(statement)
    for table in TABLES:
        if has_lz4:
            for column in TEXT_PAYLOADS:
                op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET COMPRESSION lz4")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(GRAFANA_EXECUTIONS)
    op.execute(GRAFANA_STEPS)
    op.execute(ENSURE_PARTITIONS.replace("{schema_literal}", str(schema_literal)))
    op.execute("REVOKE ALL ON FUNCTION spanledger_ensure_partitions FROM PUBLIC")

    for role in ROLES:
        # From Postgres 16 on the login keeps its own rights and takes a role's only by SET ROLE.
        options = " WITH INHERIT FALSE, SET TRUE" if server_version >= 160000 else ""
        op.execute(ROLE.format(role=role, membership=f"GRANT {role} TO CURRENT_USER{options};"))
        if bind.scalar(text("SELECT to_regrole(:role) IS NOT NULL"), {"role": role}):
            for statement in GRANTS[role]:
                op.execute(statement)
            if role in POLICIES:
                for table in TABLES:
                    op.execute(f"CREATE POLICY {role} ON {table} {POLICIES[role]}")
            if role == "spanledger_sink":
                op.execute(BYPASS)
    op.execute("SELECT spanledger_ensure_partitions((now() AT TIME ZONE 'UTC')::date - 1, 9)")


# A role that somebody else is a member of is in use.
DROP_ROLE = """
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_auth_members
        WHERE roleid = to_regrole('{role}') AND member <> current_user::regrole
    ) THEN
        DROP ROLE IF EXISTS {role};
    END IF;
EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
    RAISE NOTICE 'role {role} stays: another database uses it, or % may not drop it', current_user;
END
$$
"""


def downgrade() -> None:
    op.execute("DROP VIEW grafana_executions, grafana_steps")
    op.execute("DROP TABLE agent_executions, execution_steps")
    op.execute("DROP FUNCTION spanledger_ensure_partitions")
    for role in ROLES:
        op.execute(DROP_ROLE.format(role=role))
