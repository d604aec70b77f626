"""The roll-up is written with the rows: in the same transaction, for each row once, and to the last digit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from app.database import Database
from app.rollup import differences
from telemetry import rollup
from telemetry.execution import EXECUTION_COLUMNS, STEP_COLUMNS, Service
from telemetry.metrics import AGENT_SECONDS
from telemetry.rollup import deltas
from telemetry.settle import settle
from telemetry.usage import Usage
from tests.telemetry.stored import END, SERVICE, TRACE, Sink, execution, nanoseconds, sink, step, usage

HOUR = END.replace(minute=0, second=0)
A2, A3 = "00000000000000a2", "00000000000000a3"
EVER = datetime(2000, 1, 1, tzinfo=UTC)
# What `execution()` adds.
ROW: dict[str, Any] = {
    "hour": HOUR,
    "duration_le": 1.6,
    "service_name": "tutor",
    "environment": "test",
    "agent_name": "tutor",
    "model_used": None,
    "status": "success",
    "is_root": True,
    "executions": 1,
    "execution_time_ns": 1_000_500_000,
    "tokens_used": 0,
    "input_tokens": 0,
    "cache_read_tokens": 0,
    "cache_write_tokens": 0,
    "output_tokens": 0,
    "reasoning_tokens": 0,
    "tokens_total": 0,
    "cost_usd": 0,
    "priced": 0,
    "unpriced": 0,
    "folded": False,
}


@pytest.fixture
def drained(database: Database, tmp_path: Path) -> Iterator[Sink]:
    with sink(tmp_path, database.sink_connection) as made:
        yield made


def rolled_up(database: Database) -> list[dict[str, Any]]:
    with database.connect("spanledger_admin") as connection:
        found = connection.execute(text("SELECT * FROM execution_rollup ORDER BY hour, agent_name, executions DESC"))
        return [dict(row) for row in found.mappings()]


# What is added


def test_a_batch_adds_a_row_for_each_key(database: Database, drained: Sink) -> None:
    priced = Usage(900, 400, 50, 120, 20, Decimal("0.00345"), "local")
    drained.put(
        execution(),
        execution(A2),
        execution(A3, agent_name="other", parent_agent_span_id="00000000000000a1", model="gpt-4o", own=priced),
        step(),
    )
    assert drained.drain()
    other = ROW | {
        **{"agent_name": "other", "is_root": False, "model_used": "gpt-4o", "tokens_used": 1020, "tokens_total": 1020},
        **{"input_tokens": 900, "cache_read_tokens": 400, "cache_write_tokens": 50, "output_tokens": 120},
        **{"reasoning_tokens": 20, "cost_usd": Decimal("0.00345"), "priced": 1},
    }
    assert rolled_up(database) == [other, ROW | {"executions": 2, "execution_time_ns": 2_001_000_000}]


def test_every_batch_appends(database: Database, drained: Sink) -> None:
    for span_id in ("00000000000000a1", A2):
        drained.put(execution(span_id))
        assert drained.drain()
    assert rolled_up(database) == [ROW, ROW]


def test_steps_alone_add_nothing(database: Database, drained: Sink) -> None:
    drained.put(step())
    assert drained.drain()
    assert rolled_up(database) == []


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (Usage(), (0, 0, 0)),
        (usage(5, "0.5"), (Decimal("0.5"), 1, 0)),
        (usage(5), (0, 0, 1)),
        (usage(5, "0"), (0, 1, 0)),
        (usage(5, "0.5", "partial"), (Decimal("0.5"), 1, 1)),
        (usage(0), (0, 0, 1)),
        (Usage(5, 0, 0, 0, 0, None, None), (0, 0, 1)),
    ],
)
def test_what_is_known_of_the_cost(database: Database, drained: Sink, own: Usage, expected: tuple[Any, ...]) -> None:
    drained.put(execution(own=own))
    assert drained.drain()
    assert [(row["cost_usd"], row["priced"], row["unpriced"]) for row in rolled_up(database)] == [expected]
    assert differences(database, EVER) == []


@pytest.mark.parametrize("server", ["embedded", "postgres15"], indirect=True)
def test_it_is_what_the_rows_add_up_to_to_the_last_digit(database: Database, drained: Sink) -> None:
    dice = random.Random(7)
    made = []
    for number in range(600):
        duration = max(0, round(dice.choice((0.0, *AGENT_SECONDS)) * 1e9) + dice.choice((-1, 0, 0, 1, 1234567)))
        cost = dice.choice((None, "0", "0.1", "1e-12", "1234.000000000000000000001", "33.3"))
        tokens = dice.choice((0, 1, 7, 2**53))
        end = END - timedelta(minutes=dice.randrange(300))
        own = Usage(tokens, tokens // 2, 1, 2, 1, None if cost is None else Decimal(cost), "unknown")
        made.append(
            execution(
                f"{number:016x}",
                start_time=nanoseconds(end) - duration,
                end=end,
                agent_name=dice.choice(("tutor", "tab\tand \\ and\nnewline", "naïve", "\\N", "")),
                model=dice.choice((None, "gpt-4o", "")),
                service=dice.choice((SERVICE, Service("other", None, None, None, None))),
                status=dice.choice(("success", "failure", "crashed")),
                parent_agent_span_id=dice.choice((None, "00000000000000ff")),
                own=own,
                total=dice.choice((own, usage(tokens, "0.1"))),
            )
        )
    drained.put(*made)
    assert drained.drain()
    assert (drained.stored["executions"], drained.rejected.total()) == (600, 0)
    assert differences(database, EVER) == []
    assert sum(row["executions"] for row in rolled_up(database)) == 600


# Once, and with the row


def test_a_replayed_segment_adds_nothing(database: Database, drained: Sink) -> None:
    for _ in range(2):
        drained.put(execution())
        assert drained.drain()
    assert rolled_up(database) == [ROW]


def test_only_what_is_new_is_added(database: Database, drained: Sink) -> None:
    drained.put(execution())
    assert drained.drain()
    drained.put(execution(), execution(A2), execution(A2), execution(A3, status="unheard of"))
    assert drained.drain()
    assert rolled_up(database) == [ROW, ROW]
    assert differences(database, EVER) == []


def test_rows_and_roll_up_are_one_transaction(
    database: Database, drained: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On either path Postgres goes away after the rows and before the commit: neither is there, then both once."""
    add = rollup.add

    def then_gone(connection: psycopg.Connection[Any], deltas: bytes) -> None:
        add(connection, deltas)
        raise psycopg.OperationalError("gone")

    for span_ids in (["00000000000000a1"], ["00000000000000a1", A2]):
        before = rolled_up(database)
        drained.put(*map(execution, span_ids))
        with monkeypatch.context() as patch:
            patch.setattr(rollup, "add", then_gone)
            assert not drained.drain()
        assert rolled_up(database) == before
        assert differences(database, EVER) == []
        assert drained.drain()
        assert rolled_up(database) == [*before, ROW]
        assert differences(database, EVER) == []


def test_a_halved_batch_adds_each_half_with_its_rows(database: Database, drained: Sink) -> None:
    ids = [f"{number:016x}" for number in range(7)]
    drained.put(*(execution(span_id, status="bad" if number == 3 else "success") for number, span_id in enumerate(ids)))
    assert drained.drain()
    assert [row["executions"] for row in rolled_up(database)] == [3, 2, 1]
    assert differences(database, EVER) == []


@pytest.mark.parametrize("zone", ["Z", "+01", "+00:00"])
def test_a_time_that_is_not_written_as_ours_is_set_aside(database: Database, drained: Sink, zone: str) -> None:
    fields = execution(A2).line().split(b"\t")
    at = EXECUTION_COLUMNS.index("created_at")
    fields[at] = fields[at].removesuffix(b"+00") + zone.encode()
    drained.put(execution())
    drained.spool.append("executions", b"\t".join(fields))
    drained.put(execution(A3))
    assert drained.drain()
    assert (drained.stored["executions"], drained.rejected["data"]) == (2, 1)
    assert differences(database, EVER) == []


def test_a_cost_of_more_digits_than_we_add_stands_alone(database: Database, drained: Sink) -> None:
    drained.put(*(execution(f"{number:016x}", own=usage(1, cost)) for number, cost in enumerate(("1", "1e-600", "2"))))
    assert drained.drain()
    assert sorted(row["cost_usd"] for row in rolled_up(database)) == [Decimal("1e-600"), 1, 2]
    assert differences(database, EVER) == []


def test_sums_no_bigint_holds(database: Database, drained: Sink) -> None:
    drained.put(*(execution(f"{number:016x}", own=Usage(2**62)) for number in range(4)))
    assert drained.drain()
    assert [row["tokens_used"] for row in rolled_up(database)] == [2**64]
    assert differences(database, EVER) == []


# Corrections


def test_a_late_step_adds_the_difference(database: Database, drained: Sink) -> None:
    drained.put(execution(own=usage(10)), step(usage=usage(10)))
    assert drained.drain()
    drained.put(step(A2, usage=usage(4, "0.25"), late=True))
    assert drained.drain()
    before = ROW | {"tokens_used": 20, "input_tokens": 10, "output_tokens": 10, "tokens_total": 20, "unpriced": 1}
    change = ROW | {
        **{"executions": 0, "execution_time_ns": 0, "tokens_used": 8, "input_tokens": 4, "output_tokens": 4},
        **{"tokens_total": 8, "cost_usd": Decimal("0.25"), "priced": 1},
    }
    assert rolled_up(database) == [before, change]
    assert differences(database, EVER) == []
    drained.put(step(A2, usage=usage(4, "0.25"), late=True))  # replayed
    assert drained.drain()
    assert rolled_up(database) == [before, change]


def test_a_cost_that_turns_out_unknown(database: Database, drained: Sink) -> None:
    drained.put(execution(own=usage(10, "0.5")))
    assert drained.drain()
    drained.put(step(usage=usage(10), late=True))
    assert drained.drain()
    sums = [(row["cost_usd"], row["priced"], row["unpriced"]) for row in rolled_up(database)]
    assert sums == [(Decimal("0.5"), 1, 0), (Decimal("-0.5"), -1, 1)]
    assert differences(database, EVER) == []


def test_two_that_settle_a_trace_wait_for_each_other(database: Database, tmp_path: Path) -> None:
    """Else each would leave out the other's step, and take the old value for its own difference."""
    with sink(tmp_path, database.sink_connection) as made:
        made.put(execution())
        assert made.drain()
        with database.sink_connection() as first, sink(tmp_path / "other", database.sink_connection) as second:
            copy = "COPY execution_steps ({}) FROM STDIN"
            with first.cursor().copy(copy.format(", ".join(STEP_COLUMNS)).encode()) as lines:
                lines.write(step(A2, usage=usage(3, "1"), late=True).line())
            settle(first, [TRACE])
            second.put(step(A3, usage=usage(5, "2"), late=True))
            thread = Thread(target=second.drain)
            thread.start()
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
            with database.connect("spanledger_admin") as connection:
                while not connection.scalar(text(waiting)):
                    assert thread.is_alive()
            first.commit()
            thread.join()
    assert sum(row["tokens_used"] for row in rolled_up(database)) == 16
    assert differences(database, EVER) == []


def test_deltas_look_at_no_payload() -> None:
    line = execution(input=b'"\xff"').line()
    assert deltas([line]) == deltas([execution().line()])
