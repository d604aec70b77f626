"""Is Postgres there, migrated, and do rows arrive?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg

from app.database import MIGRATIONS, VERSION_TABLE, newest_revision
from app.doctor.finding import Check, Finding, fail, ok, skip, warn
from app.doctor.patient import Away, Patient

ROLES = ("spanledger_sink", "spanledger_admin", "spanledger_reader", "spanledger_grafana")
TABLES = ("agent_executions", "execution_steps")
MANY = 100_000
"""Rows are counted up to here: beyond, it takes longer than anybody waits."""
LAG_SECONDS = 60.0
MIGRATE = "Run spanledger migrate as the owner of the schema, or restart the service."
AWAY = skip("no database")


def database(patient: Patient) -> Finding:
    """Connect."""
    try:
        version = patient.database.execute("SELECT current_setting('server_version')").fetchone()
    except Away as away:
        embedded = patient.settings.database_url is None
        start = "(Re)start the service: it starts the server." if embedded else "Start it, or correct DATABASE_URL."
        detail = str(away) if embedded else f"{patient.database_place}: {away}"
        return fail(detail, f"{start} The service spools rows until it is back.")
    assert version is not None
    return ok(f"Postgres {version[0].split()[0]}, {patient.database_place}")


def migrations(patient: Patient) -> Finding:
    """The revision in the database against the newest of this release."""
    newest = newest_revision()
    try:
        found = patient.database.execute(f"SELECT version_num FROM {VERSION_TABLE}".encode()).fetchone()
    except Away:
        return AWAY
    except psycopg.errors.UndefinedTable:
        return fail("the schema was never made", MIGRATE)
    except psycopg.errors.InsufficientPrivilege:
        return warn(f"this login may not read {VERSION_TABLE}", f"Grant it SELECT on {VERSION_TABLE}, as the owner.")
    version = found[0] if found else "none"
    if version < newest or found is None:
        return fail(f"at {version}, this release needs {newest} ({MIGRATIONS.name}/versions)", MIGRATE)
    return ok(f"at {version}" + ("" if version == newest else f", newer than this release's {newest}"))


def partitions(patient: Patient) -> Finding:
    """Those of today and tomorrow, UTC: without one a row cannot be stored."""
    try:
        today = patient.database.execute("SELECT now()").fetchone()
        assert today is not None
        names = [f"{table}_{today[0] + timedelta(days=day):%Y%m%d}" for day in (0, 1) for table in TABLES]
        query = "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NULL"
        missing = [name for (name,) in patient.database.execute(query, [names])]
    except Away:
        return AWAY
    if missing:
        return fail("missing: " + ", ".join(missing), "Restart the service, or run spanledger migrate: both make them.")
    return ok("there for today and tomorrow")


def roles(patient: Patient) -> Finding:
    """Those the connections work as."""
    try:
        query = "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regrole(name) IS NULL"
        missing = [name for (name,) in patient.database.execute(query, [list(ROLES)])]
    except Away:
        return AWAY
    if missing:
        return warn(
            "missing: " + ", ".join(missing),
            "As an administrator of the server make them and grant them to the login (managed Postgres: see "
            "docs/architecture.md). Until then the service works as its login role, which may do more.",
        )
    return ok("all four are there")


def rows(patient: Patient) -> Finding:
    """Rows against the counters of the service: what was counted must be stored."""
    try:
        with patient.reading_rows() as connection:
            counted = connection.execute(
                f"SELECT count(*) FROM (SELECT FROM agent_executions LIMIT {MANY + 1}) AS seen".encode()
            ).fetchone()
            newest = connection.execute("SELECT max(created_at) FROM agent_executions").fetchone()
    except Away:
        return AWAY
    except psycopg.errors.UndefinedTable:
        return fail("no table agent_executions", MIGRATE)
    assert counted is not None
    assert newest is not None
    latest: datetime | None = newest[0]
    number = f"more than {MANY}" if counted[0] > MANY else counted[0]
    seen = f"{number} rows, the newest of {latest.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if latest else "no rows"
    try:
        return _against_counters(patient, latest, seen)
    except Away:
        return skip(f"{seen}; no metrics of the service to compare")


def _against_counters(patient: Patient, latest: datetime | None, seen: str) -> Finding:
    metrics = patient.metrics
    ended = int(metrics.total("spanledger_executions_total"))
    if not ended and latest is None:
        return warn(
            f"{seen}, and no agent has run since the service started",
            "Run one: the command is what spanledger run printed at its start. Then look again.",
        )
    seen += f"; {ended} executions ended since the service started"
    started = datetime.fromtimestamp(metrics.total("process_start_time_seconds"), UTC)
    if not ended or (latest is not None and latest >= started):
        return ok(seen)
    if metrics.total("spanledger_spool_bytes") and metrics.total("spanledger_spool_oldest_age_seconds") < LAG_SECONDS:
        return warn(f"{seen}, and their rows are on their way", "Look again in a minute.")
    return fail(
        f"{seen}, and none of their rows is in the database",
        "See the lines `spool`, `rejected_rows` and `dropped_rows`, and whether DATABASE_URL here is the service's.",
    )


CHECKS = (
    Check("database", database),
    Check("migrations", migrations),
    Check("partitions", partitions),
    Check("roles", roles),
    Check("rows", rows),
)
