"""Who may do what: four roles, their grants, and row-level security."""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "0002"
down_revision = "0001"

TABLES = ("agent_executions", "execution_steps")

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


def upgrade() -> None:
    bind = op.get_bind()
    server_version = int(bind.scalar(text("SHOW server_version_num")) or 0)
    # From Postgres 16 on the login keeps its own rights and takes a role's only by SET ROLE.
    options = " WITH INHERIT FALSE, SET TRUE" if server_version >= 160000 else ""
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    for role, grants in GRANTS.items():
        op.execute(ROLE.format(role=role, membership=f"GRANT {role} TO CURRENT_USER{options};"))
        if not exists(role):
            continue
        for statement in grants:
            op.execute(statement)
        if role in POLICIES:
            for table in TABLES:
                op.execute(f"CREATE POLICY {role} ON {table} {POLICIES[role]}")
        if role == "spanledger_sink":
            op.execute(BYPASS)


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    for role in filter(exists, GRANTS):
        for table in TABLES:
            op.execute(f"DROP POLICY IF EXISTS {role} ON {table}")
        op.execute(
            "REVOKE ALL ON agent_executions, execution_steps, grafana_executions, grafana_steps,"
            f" spanledger_alembic_version FROM {role}"
        )
        op.execute(f"REVOKE ALL ON FUNCTION spanledger_ensure_partitions FROM {role}")
        op.execute(DROP_ROLE.format(role=role))


def exists(role: str) -> bool:
    return bool(op.get_bind().scalar(text("SELECT to_regrole(:role) IS NOT NULL"), {"role": role}))
