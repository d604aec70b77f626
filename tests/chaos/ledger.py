"""Ledger: the tally beside rows and metrics. Whatever differs without a counted reason is a fault."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

import psycopg

from app import rollup
from app.check import check
from app.database import Database
from tests.chaos.stage import Stage
from tests.chaos.tally import Mark, Told

SHOWN = 5
ENDINGS = "SELECT request_id, agent_name, status, execution_time_ms, trace_id FROM agent_executions"
STEPS = "SELECT request_id, count(*) FROM execution_steps GROUP BY 1"


class Balance(NamedTuple):
    """The numbers of a scenario; `faults` say what nothing explains."""

    started: int
    ended: int
    stored: int
    crashed: int
    dropped: dict[str, int]
    rejected: int
    replayed: int
    duplicates: int
    counted: int
    queued: int  # lines that waited in memory, which a SIGKILL takes
    faults: list[str]

    @classmethod
    def of(cls, stage: Stage, told: Told, database_url: str) -> Balance:
        """Compare; the stage has settled."""
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(ENDINGS).fetchall()
            steps: dict[str, int] = dict(connection.execute(STEPS).fetchall())
        metrics = stage.metrics()
        dropped = {reason: int(number) for reason, number in metrics["spanledger_rows_dropped_total"].items() if number}
        found: dict[tuple[str, str], list[str]] = {}
        for number, agent, status, *_ in rows:
            found.setdefault((number, agent), []).append(status)
        statuses = Counter(status for _, _, status, *_ in rows)
        missing, faults = _compare(stage, told, found)
        without_step = _without_step(stage, told, steps, faults)
        missing += [f"the step of {number}" for number in without_step]
        if len(missing) != sum(dropped.values()):
            faults.append(f"{len(missing)} rows are missing, {sum(dropped.values())} were dropped: {_some(missing)}")
        counted = metrics.get("spanledger_executions_total", {})
        faults += _compare_counts(stage, counted, statuses)
        rejected = int(sum(metrics["spanledger_rows_rejected_total"].values()))
        if rejected:
            faults.append(f"{rejected} rows were rejected, and none was bad")
        if negative := [row for row in rows if row[3] < 0]:
            faults.append(f"durations below 0: {_some(negative)}")
        roots = {_root(number) for number in without_step}
        faults += _check(database_url, {trace for number, *_, trace in rows if _root(number) in roots})
        duplicates = sum(len(rows) - 1 for rows in found.values())
        return cls(
            started=len(told.marks) * len(stage.agents),
            ended=len(told.calls) * len(stage.agents),
            stored=len(rows),
            crashed=statuses["crashed"],
            dropped=dropped,
            rejected=rejected,
            replayed=int(metrics["spanledger_sink_rows_duplicate_total"]["executions"]),
            duplicates=duplicates,
            counted=int(sum(counted.values())),
            queued=int(metrics["spanledger_spool_queued_lines_total"][""]),
            faults=faults,
        )


def _compare(stage: Stage, told: Told, found: dict[tuple[str, str], list[str]]) -> tuple[list[str], list[str]]:
    """Numbers without a row that should have one, and faults of those that have."""
    missing, faults = [], []
    for number, mark in told.marks.items():
        for agent in stage.agents:
            statuses = found.get((number, agent), [])
            if len(statuses) > 1:
                faults.append(f"{agent} {number} has {len(statuses)} rows: {statuses}")
            elif not statuses and mark > Mark.ASKED:
                missing.append(f"{number} ({mark.name.lower()})")
            elif statuses and statuses[0] not in _allowed(mark, told.statuses.get(number), len(stage.agents)):
                faults.append(f"{agent} {number} is {statuses[0]}, though {mark.name.lower()}")
    strangers = {key for key in found if key[0] not in told.marks or key[1] not in stage.agents}
    if strangers:
        faults.append(f"rows of nobody: {_some(sorted(strangers))}")
    return missing, faults


def _allowed(mark: Mark, status: str | None, agents: int) -> set[str | None]:
    if mark is Mark.ENDED:
        return {status}
    if agents > 1:  # a client that saw no end knows nothing
        return {"success", "cancelled", "crashed", "failure"}
    return {"crashed", status} if mark is Mark.CLOSING else {"crashed"}


def _without_step(stage: Stage, told: Told, steps: dict[str, int], faults: list[str]) -> list[str]:
    """Numbers whose step should be there and is not."""
    missing = []
    if stage.steps:
        for number, mark in told.marks.items():
            here, least = steps.get(number, 0), stage.steps if mark > Mark.OPEN else 0
            if here > stage.steps:
                faults.append(f"{number} has {here} steps for {stage.steps}")
            missing += [number] * (least - here)
    return missing


def _root(number: str) -> str:
    """Of the trace in which this number is."""
    return number.partition(".")[0]


def _compare_counts(stage: Stage, counted: dict[str, float], stored: Counter[str]) -> list[str]:
    """Counters equal rows. Those of a service that was killed end with its last scrape: the sum may not be more."""
    said = {status: int(number + stage.counted[status]) for status, number in counted.items() if number}
    if stage.restarted:
        return [f"/metrics had more than the rows: {said} for {dict(stored)}"] if Counter(said) - stored else []
    return [f"/metrics has {said}, the rows {dict(stored)}"] if said != stored else []


def _check(database_url: str, without_step: set[str]) -> list[str]:
    """What `spanledger check` says. Of traces without a step that was dropped it must say that they differ."""
    database = Database(database_url)
    try:
        report = check(database, rollup.first_full_hour(datetime.now(UTC) - timedelta(days=30)))
    finally:
        database.dispose()
    unexplained = report._replace(traces=[row for row in report.traces if row.trace_id not in without_step])
    return [unexplained.to_text()] if unexplained else []


def _some(items: list[Any]) -> str:
    return ", ".join(str(item) for item in islice(items, SHOWN)) + (" …" if len(items) > SHOWN else "")
