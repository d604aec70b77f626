"""Steps are the truth: what executions say of tokens and cost follows from them, however late they came."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.database import Database
from telemetry.settle import settle
from telemetry.spool import EXECUTIONS
from telemetry.usage import Usage
from tests.telemetry.stored import EXECUTION_ROW, OTHER_TRACE, TRACE, Sink, execution, rows, sink, step, usage

ROOT, MIDDLE, LEAF, SIDE = (f"00000000000000a{number}" for number in (1, 2, 3, 4))
WRONG = {"own": Usage(7, 7, 7, 7, 7, Decimal(7), "mixed"), "total": Usage(8, 8, 8, 8, 8, Decimal(8), "mixed")}


@pytest.fixture
def stored(database: Database, tmp_path: Path) -> Iterator[Sink]:
    """A root with two agents below, one of which has another below: all with totals that are not true."""
    with sink(tmp_path, database.sink_connection) as made:
        made.put(
            execution(ROOT, **WRONG),
            execution(MIDDLE, parent_agent_span_id=ROOT, **WRONG),
            execution(LEAF, parent_agent_span_id=MIDDLE, **WRONG),
            execution(SIDE, parent_agent_span_id=ROOT, **WRONG),
        )
        yield made


def settled(database: Database, *traces: str) -> None:
    with database.sink_connection() as connection:
        settle(connection, list(traces))


def numbers(database: Database) -> dict[str, tuple[Any, ...]]:
    """Span id -> own tokens, total tokens, own cost, total cost, source."""
    names = ("tokens_used", "tokens_total", "cost_usd", "cost_total_usd", "cost_source")
    return {row["span_id"]: tuple(row[name] for name in names) for row in rows(database, EXECUTIONS)}


def test_totals_are_recomputed_over_three_levels(database: Database, stored: Sink) -> None:
    own = Usage(900, 400, 50, 120, 20, Decimal("0.25"), "local")
    stored.put(
        step("00000000000000b1", agent_span_id=ROOT, usage=own),
        step("00000000000000b2", agent_span_id=MIDDLE, usage=usage(5, "0.5")),
        step("00000000000000b3", agent_span_id=LEAF, usage=usage(3, "0.125")),
        step("00000000000000b4", agent_span_id=LEAF, usage=usage(2, "1.5")),
        step("00000000000000b5", agent_span_id=LEAF, operation="execute_tool"),
        step("00000000000000b6", agent_span_id=None, usage=usage(1000, "9")),
    )
    assert stored.drain()
    settled(database, TRACE)
    expected = {
        ROOT: (1020, 1040, Decimal("0.25"), Decimal("2.375"), "local"),
        MIDDLE: (10, 20, Decimal("0.5"), Decimal("2.125"), "local"),
        LEAF: (10, 10, Decimal("1.625"), Decimal("1.625"), "local"),
        SIDE: (0, 0, None, None, None),
    }
    assert numbers(database) == expected
    assert rows(database, EXECUTIONS)[0] == EXECUTION_ROW | {
        **{"tokens_used": 1020, "input_tokens": 900, "cache_read_tokens": 400, "cache_write_tokens": 50},
        **{"output_tokens": 120, "reasoning_tokens": 20, "tokens_total": 1040},
        **{"cost_usd": Decimal("0.25"), "cost_total_usd": Decimal("2.375"), "cost_source": "local"},
    }
    settled(database, TRACE, TRACE, OTHER_TRACE)
    assert numbers(database) == expected


@pytest.mark.parametrize(
    ("middle", "leaf", "expected"),
    [
        ([("1", "provider")], [("2", "provider")], (Decimal(1), Decimal(3), "provider")),
        ([("1", "provider")], [("2", "local")], (Decimal(1), Decimal(3), "mixed")),
        ([("1", "local"), (None, "")], [], (Decimal(1), Decimal(1), "partial")),
        ([("1", "local")], [("2", "provider"), (None, "")], (Decimal(1), Decimal(3), "partial")),
        ([(None, "")], [], (None, None, "unknown")),
        ([(None, "")], [("0", "provider")], (None, Decimal(0), "partial")),
        ([], [("2", "local")], (None, Decimal(2), "local")),
        ([], [], (None, None, None)),
    ],
)
def test_costs_and_where_they_come_from(
    database: Database,
    stored: Sink,
    middle: list[tuple[str | None, str]],
    leaf: list[tuple[str | None, str]],
    expected: tuple[Any, ...],
) -> None:
    for agent, calls in ((MIDDLE, middle), (LEAF, leaf)):
        for number, (cost, source) in enumerate(calls):
            stored.put(
                step(f"{agent[:15]}{number}{agent[15:]}"[-16:], agent_span_id=agent, usage=usage(1, cost, source))
            )
    assert stored.drain()
    settled(database, TRACE)
    tokens = 2 * len(middle)
    assert numbers(database)[MIDDLE] == (tokens, tokens + 2 * len(leaf), *expected)


def test_other_traces_are_not_touched(database: Database, stored: Sink) -> None:
    stored.put(
        execution(SIDE, trace_id=OTHER_TRACE, **WRONG),
        step("00000000000000b1", trace_id=OTHER_TRACE, agent_span_id=ROOT, usage=usage(5, "5")),
    )
    assert stored.drain()
    settled(database, OTHER_TRACE)
    wrong = (14, 16, Decimal(7), Decimal(8), "mixed")
    settled(database)
    found = {(row["trace_id"], row["span_id"]): row["tokens_used"] for row in rows(database, EXECUTIONS)}
    assert found == {**{(TRACE, span_id): 14 for span_id in (ROOT, MIDDLE, LEAF, SIDE)}, (OTHER_TRACE, SIDE): 0}
    assert {span_id: row for span_id, row in numbers(database).items() if span_id != SIDE} == {
        ROOT: wrong,
        MIDDLE: wrong,
        LEAF: wrong,
    }


def test_agents_that_claim_to_be_each_others_parents(database: Database, tmp_path: Path) -> None:
    with sink(tmp_path, database.sink_connection) as made:
        for seconds in range(3):
            for one, other in ((ROOT, MIDDLE), (MIDDLE, ROOT), (LEAF, LEAF)):
                end = EXECUTION_ROW["created_at"].replace(microsecond=seconds)
                made.put(execution(one, end=end, parent_agent_span_id=other))
        made.put(step(agent_span_id=LEAF, usage=usage(1, "1")))
        assert made.drain()
        with database.sink_connection() as connection:
            connection.execute("SET statement_timeout = '10s'")
            settle(connection, [TRACE])
    assert {numbers(database)[span_id][0] for span_id in (ROOT, MIDDLE)} == {0}


# Through the sink


def test_a_late_step_updates_the_executions_above_it(database: Database, tmp_path: Path) -> None:
    early, late = usage(10, "0.5"), usage(4, "0.25")
    with sink(tmp_path, database.sink_connection) as made:
        made.put(
            step("00000000000000b1", agent_span_id=LEAF, usage=early),
            execution(LEAF, parent_agent_span_id=MIDDLE, own=early),
            execution(MIDDLE, parent_agent_span_id=ROOT, total=early),
            execution(ROOT, total=early),
            execution(SIDE, trace_id=OTHER_TRACE, **WRONG),
        )
        assert made.drain()
        untouched = (14, 16, Decimal(7), Decimal(8), "mixed")
        assert numbers(database) == {
            ROOT: (0, 20, None, Decimal("0.5"), "local"),
            MIDDLE: (0, 20, None, Decimal("0.5"), "local"),
            LEAF: (20, 20, Decimal("0.5"), Decimal("0.5"), "local"),
            SIDE: untouched,
        }
        made.put(step("00000000000000b2", agent_span_id=LEAF, usage=late, late=True))
        assert made.drain()
        expected = {
            ROOT: (0, 28, None, Decimal("0.75"), "local"),
            MIDDLE: (0, 28, None, Decimal("0.75"), "local"),
            LEAF: (28, 28, Decimal("0.75"), Decimal("0.75"), "local"),
            SIDE: untouched,
        }
        assert numbers(database) == expected
        made.put(step("00000000000000b2", agent_span_id=LEAF, usage=late, late=True))  # replayed
        assert made.drain()
        assert numbers(database) == expected


def test_a_late_execution_updates_those_above_it(database: Database, tmp_path: Path) -> None:
    own = usage(3, "1")
    with sink(tmp_path, database.sink_connection) as made:
        made.put(execution(ROOT))
        assert made.drain()
        made.put(
            step("00000000000000b1", agent_span_id=MIDDLE, usage=own),
            execution(MIDDLE, parent_agent_span_id=ROOT, own=own, late=True),
        )
        assert made.drain()
    assert numbers(database) == {
        ROOT: (0, 6, None, Decimal(1), "local"),
        MIDDLE: (6, 6, Decimal(1), Decimal(1), "local"),
    }


def test_a_late_step_beside_a_bad_row(database: Database, tmp_path: Path) -> None:
    with sink(tmp_path, database.sink_connection) as made:
        made.put(execution(ROOT))
        assert made.drain()
        made.put(step("00000000000000b1", agent_span_id=ROOT, usage=usage(3, "1"), late=True))
        made.spool.append("steps", b"t\tbad\n")
        assert made.drain()
        assert made.rejected["data"] == 1
    assert numbers(database) == {ROOT: (6, 6, Decimal(1), Decimal(1), "local")}


def test_sums_that_no_column_holds_do_not_hold_up_rows(database: Database, tmp_path: Path) -> None:
    with sink(tmp_path, database.sink_connection) as made:
        made.put(execution(ROOT))
        for number in range(2):
            made.put(step(f"00000000000000b{number}", agent_span_id=ROOT, usage=Usage(2**62), late=True))
        assert made.drain()
        assert (made.stored["steps"], made.guard.counts) == (2, {"sink": 1})
    assert numbers(database) == {ROOT: (0, 0, None, None, None)}


def test_settling_needs_no_more_rights_than_the_sink_has(database: Database, stored: Sink) -> None:
    assert stored.drain()
    with database.sink_connection() as connection:
        (role,) = connection.execute("SELECT current_user").fetchone() or ("",)
        assert role == "spanledger_sink"
        settle(connection, [TRACE])
        assert connection.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
        connection.rollback()
    assert numbers(database)[ROOT] == (14, 16, Decimal(7), Decimal(8), "mixed")
