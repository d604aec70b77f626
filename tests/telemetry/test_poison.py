"""Poison: whatever a span or a line holds, it is stored, replaced or set aside by reason, and the rest goes in."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from app.database import Database
from app.rollup import differences
from telemetry import AgentMonitor, configure
from telemetry.caller import Caller
from telemetry.execution import EXECUTION_COLUMNS, STEP_COLUMNS
from telemetry.rejected import Rejected
from telemetry.spool import EXECUTIONS, STEPS
from telemetry.usage import Usage
from tests.telemetry.stored import END, Sink, execution, rows, sink, step

EVER = datetime(2000, 1, 1, tzinfo=UTC)
BEFORE, POISON, AFTER = (f"00000000000000{number}" for number in ("a0", "a5", "a9"))
MEGABYTES = '"' + "0123456789" * 1_000_000 + '"'
COLUMNS = {EXECUTIONS: EXECUTION_COLUMNS, STEPS: STEP_COLUMNS}


@pytest.fixture
def drained(database: Database, tmp_path: Path) -> Iterator[Sink]:
    with sink(tmp_path, database.sink_connection) as made:
        yield made


def poisoned(table: str, **values: str) -> bytes:
    """A line with these columns as they are."""
    row = execution(POISON) if table == EXECUTIONS else step(POISON)
    fields = row.line().removesuffix(b"\n").split(b"\t")
    for name, value in values.items():
        fields[COLUMNS[table].index(name)] = value.encode("utf-8", "surrogatepass")
    return b"\t".join(fields) + b"\n"


def drain_with(drained: Sink, table: str, line: bytes) -> None:
    """A good row of the same table before it and after it."""
    make = execution if table == EXECUTIONS else step
    drained.put(make(BEFORE))
    drained.spool.append(table, line)
    drained.put(make(AFTER))
    assert drained.drain()
    assert (drained.failures, drained.guard.counts) == (0, {})


SET_ASIDE = {
    "NUL": ({"user_id": "a\0b"}, "data"),
    "NUL in a payload": ({"input_data": '"a\0b"'}, "data"),
    "escaped NUL in jsonb": ({"attributes": '{"a":"\\\\u0000"}'}, "data"),
    "lone surrogate": ({"user_id": "\ud800"}, "data"),
    "lone surrogate in a payload": ({"output_data": '"\udfff"'}, "data"),
    "escaped lone surrogate in jsonb": ({"attributes": '{"a":"\\\\ud800"}'}, "data"),
    "carriage return": ({"user_id": "a\rb"}, "data"),
    "infinite moment": ({"created_at": "infinity"}, "timestamp"),
    "no moment": ({"created_at": "\\N"}, "timestamp"),
    "year 294277": ({"created_at": "294277-01-01 00:00:00.000000+00"}, "data"),
    "year 12000": ({"created_at": "12000-01-01 00:00:00.000000+00"}, "timestamp"),
    "before Christ": ({"created_at": "0044-03-15 00:00:00.000000+00 BC"}, "timestamp"),
    "the epoch": ({"created_at": "1970-01-01 00:00:00.000000+00"}, "timestamp"),
    "tokens beyond bigint": ({"input_tokens": str(2**63)}, "data"),
    "tokens that are no whole number": ({"input_tokens": "1.5"}, "data"),
    "cost NaN": ({"cost_usd": "NaN"}, "constraint"),
    "cost infinite": ({"cost_usd": "Infinity"}, "constraint"),
    "cost beyond sense": ({"cost_usd": "1e15"}, "constraint"),
    "cost beyond numeric": ({"cost_usd": "1e200000"}, "data"),
    "no status": ({"status": "fine"}, "constraint"),
}
DURATIONS = {
    "NaN": "constraint",
    "Infinity": "constraint",
    "-Infinity": "constraint",
    "9e12": "constraint",
    "1e999": "data",
}
STORED: dict[str, dict[str, Any]] = {
    "10 MB of input": {"input_data": MEGABYTES},
    "10 MB of output": {"output_data": MEGABYTES},
    "the last character": {"agent_name": "\U0010ffff"},
    "an empty name": {"agent_name": ""},
    "a cost of many digits": {"cost_usd": "0.12345678901234567890123456789012345678901234567890"},
    "a negative cost": {"cost_usd": "-0.5"},
    "the most tokens": {"input_tokens": str(2**63 - 1)},
}


@pytest.mark.parametrize("table", [EXECUTIONS, STEPS])
@pytest.mark.parametrize("kind", SET_ASIDE)
def test_what_cannot_be_stored_is_set_aside(
    database: Database, drained: Sink, tmp_path: Path, kind: str, table: str
) -> None:
    values, reason = SET_ASIDE[kind]
    drain_with(drained, table, poisoned(table, **values))
    assert [row["span_id"] for row in rows(database, table)] == [BEFORE, AFTER]
    assert (+drained.rejected, drained.stored[table]) == ({reason: 1}, 2)
    assert {row["reason"] for row in Rejected(tmp_path).page(10)[0]} == {reason}
    assert differences(database, EVER) == []


@pytest.mark.parametrize(("table", "column"), [(EXECUTIONS, "execution_time_ms"), (STEPS, "duration_ms")])
@pytest.mark.parametrize("value", DURATIONS)
def test_durations_that_are_none(database: Database, drained: Sink, table: str, column: str, value: str) -> None:
    drain_with(drained, table, poisoned(table, **{column: value}))
    assert [row["span_id"] for row in rows(database, table)] == [BEFORE, AFTER]
    assert +drained.rejected == {DURATIONS[value]: 1}
    assert differences(database, EVER) == []


@pytest.mark.parametrize("table", [EXECUTIONS, STEPS])
@pytest.mark.parametrize("kind", STORED)
def test_what_only_looks_wrong_is_stored(database: Database, drained: Sink, kind: str, table: str) -> None:
    drain_with(drained, table, poisoned(table, **STORED[kind]))
    before, row, after = rows(database, table)
    assert (before["span_id"], after["span_id"]) == (BEFORE, AFTER)
    assert {name: str(row[name]) for name in STORED[kind]} == STORED[kind]
    assert +drained.rejected == {}
    assert differences(database, EVER) == []


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # NUL and lone surrogates included


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.tuples(ANY_TEXT, ANY_TEXT, ANY_TEXT, ANY_TEXT),
    tokens=st.integers(0, 2**70),
    cost=st.one_of(st.none(), st.decimals(allow_nan=True, allow_infinity=True)),
    days=st.integers(-30_000, 30_000),
    duration=st.integers(-(2**66), 2**66),
)
def test_any_row_is_stored_or_set_aside_and_the_roll_up_agrees(
    database: Database,
    drained: Sink,
    texts: tuple[str, str, str, str],
    tokens: int,
    cost: Decimal | None,
    days: int,
    duration: int,
) -> None:
    before = drained.stored + drained.rejected + drained.duplicates
    end = END + timedelta(days=max(-719_000, min(days, 2_900_000)))
    made = execution(
        f"{before.total():016x}",
        end=end,
        agent_name=texts[0],
        model=texts[1],
        caller=Caller(texts[2], None, texts[3]),
        own=Usage(tokens, 0, 0, 0, 0, cost, "local"),
    )
    started = made.identity._replace(start_time=made.identity.end_time - duration if abs(duration) < 2**60 else 0)
    drained.put(made._replace(identity=started))
    assert drained.drain()
    assert (drained.stored + drained.rejected + drained.duplicates - before).total() == 1
    assert (drained.failures, drained.guard.counts) == (0, {})
    assert differences(database, EVER) == []


# Through the door: what spans hold never comes so far


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"user.id": "a\0b\ud800c"}, {"user_id": "a\ufffdb?c"}),
        ({"gen_ai.usage.input_tokens": 2**60, "gen_ai.usage.output_tokens": 1}, {"tokens_used": 1}),
        ({"gen_ai.usage.input_tokens": -1}, {"tokens_used": 0}),
        ({"gen_ai.usage.input_tokens": 1, "gen_ai.usage.cost": float("nan")}, {"cost_usd": None}),
        ({"gen_ai.usage.input_tokens": 1, "gen_ai.usage.cost": float("inf")}, {"cost_usd": None}),
        ({"odd": float("nan"), "more": [float("inf")]}, {}),
        ({"gen_ai.input.messages": MEGABYTES}, {}),
        ({"text": MEGABYTES, "nul": "\0", "lone": "\udc00"}, {}),
    ],
    ids=str.lower("users tokens negative nan inf attributes payload texts").split(),
)
def test_spans_are_stored_whatever_they_hold(
    database: Database, tmp_path: Path, attributes: dict[str, Any], expected: dict[str, Any]
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    telemetry = configure(
        spool_dir=tmp_path,
        connect=database.sink_connection,
        tracer_provider=provider,
        registry=CollectorRegistry(),
        drain_interval=3600,
    )
    with AgentMonitor().execution("agent"):
        pass
    chat = {"gen_ai.operation.name": "chat", "gen_ai.agent.name": "poisoned"}
    provider.get_tracer("tests").start_span("chat", attributes=chat | attributes).end()
    assert telemetry.flush()
    assert telemetry.shutdown()
    stored = {row["agent_name"]: row for row in rows(database, EXECUTIONS)}
    assert set(stored) == {"agent", "poisoned"}
    assert {name: stored["poisoned"][name] for name in expected} == expected
    assert Rejected(tmp_path).page(10) == ([], None)
    assert differences(database, EVER) == []
