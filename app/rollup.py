"""The roll-up after the sink wrote it: folded when an hour is over, compared with the rows, rebuilt if it differs."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import text

from app.database import Database

KEY = ("hour", "duration_le", "service_name", "environment", "agent_name", "model_used", "status", "is_root")
SUMS = (
    *("executions", "execution_time_ns", "tokens_used", "input_tokens", "cache_read_tokens", "cache_write_tokens"),
    *("output_tokens", "reasoning_tokens", "tokens_total", "cost_usd", "priced", "unpriced"),
)
_KEY, _SUMS = ", ".join(KEY), ", ".join(SUMS)

# Who folds or rebuilds is alone; writers and readers go on, and see each statement done or not begun.
LOCK = "pg_advisory_xact_lock(hashtext('spanledger_rollup'))"
FOLD = f"""
WITH gone AS (
    DELETE FROM execution_rollup WHERE hour IN (
        SELECT hour FROM execution_rollup WHERE NOT folded AND hour < date_trunc('hour', now(), 'UTC')
    ) RETURNING *
)
INSERT INTO execution_rollup ({_KEY}, {_SUMS}, folded)
SELECT {_KEY}, {", ".join(f"sum({name})" for name in SUMS)}, true FROM gone GROUP BY {_KEY}
"""
# One statement, one snapshot: rows and deltas of a batch are both in it, or neither.
REBUILD = """
WITH gone AS (DELETE FROM execution_rollup WHERE hour = :hour)
INSERT INTO execution_rollup SELECT * FROM spanledger_rollup_of_rows(:hour, :hour + interval '1 hour')
"""
COMPARE = f"""
WITH both_sides AS (
    SELECT true AS rolled_up, {_KEY}, {_SUMS} FROM execution_rollup WHERE hour >= :since
    UNION ALL
    SELECT false, {_KEY}, {_SUMS} FROM spanledger_rollup_of_rows(:since, 'infinity')
), summed AS (
    SELECT {_KEY}, {
    ", ".join(
        f"coalesce(sum({name}) FILTER (WHERE {side}), 0) AS {prefix}_{name}"
        for prefix, side in (("rollup", "rolled_up"), ("rows", "NOT rolled_up"))
        for name in SUMS
    )
}
    FROM both_sides GROUP BY {_KEY}
)
SELECT * FROM summed
WHERE ({", ".join(f"rollup_{name}" for name in SUMS)}) <> ({", ".join(f"rows_{name}" for name in SUMS)})
ORDER BY {_KEY}
"""


class Difference(NamedTuple):
    """An hour of which the roll-up says something else than the rows: sums over the keys that differ."""

    hour: datetime
    keys: int
    rollup: dict[str, Decimal]
    rows: dict[str, Decimal]


def compact(database: Database) -> int:
    """Fold the deltas of hours that are over into one row a key; how many rows that made, 0 when another does it.

    Raises:
        DatabaseUnavailable: Postgres cannot be reached.
    """
    with database.connect("spanledger_sink") as connection:
        if not connection.scalar(text(f"SELECT {LOCK.replace('advisory', 'try_advisory')}")):
            return 0
        return connection.execute(text(FOLD)).rowcount


def differences(database: Database, since: datetime) -> list[Difference]:
    """Hours from `since` on whose roll-up differs from the rows, in order. `since` is a full hour.

    Raises:
        DatabaseUnavailable: Postgres cannot be reached.
    """
    hours = defaultdict(list)
    with database.connect("spanledger_admin") as connection:
        for row in connection.execute(text(COMPARE), {"since": since}).mappings():
            hours[row["hour"]].append(row)
    return [
        Difference(
            hour,
            len(keys),
            {name: sum((key[f"rollup_{name}"] for key in keys), Decimal(0)) for name in SUMS},
            {name: sum((key[f"rows_{name}"] for key in keys), Decimal(0)) for name in SUMS},
        )
        for hour, keys in hours.items()
    ]


def rebuild(database: Database, hour: datetime) -> None:
    """Make the roll-up of an hour again, from its rows.

    Raises:
        DatabaseUnavailable: Postgres cannot be reached.
    """
    with database.connect("spanledger_sink") as connection:
        connection.execute(text(f"SELECT {LOCK}"))
        connection.execute(text(REBUILD), {"hour": hour})


def first_full_hour(moment: datetime) -> datetime:
    """The first hour that begins at `moment` or later."""
    hour = moment.replace(minute=0, second=0, microsecond=0)
    return hour if hour == moment else hour + timedelta(hours=1)
