"""The roll-up is folded under readers' eyes without a sum that changes, and what differs from the rows is found."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from app.database import Database
from app.rollup import FOLD, KEY, LOCK, SUMS, compact, differences, first_full_hour, rebuild
from tests.app.rows import writing
from tests.conftest import Server
from tests.telemetry.stored import Sink, execution, sink, step, usage

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = NOW.replace(minute=0, second=0)
EVER = datetime(2000, 1, 1, tzinfo=UTC)
BY = ", ".join(KEY)
SUM = text(f"SELECT {BY}, {', '.join(f'sum({name})' for name in SUMS)} FROM execution_rollup GROUP BY {BY}")
pytestmark = pytest.mark.parametrize("server", ["embedded", "postgres15"], indirect=True)


@pytest.fixture
def drained(database: Database, tmp_path: Path) -> Iterator[Sink]:
    with sink(tmp_path, database.sink_connection) as made:
        yield made


def put(drained: Sink, *hours_ago: int) -> None:
    """A batch for each hour of the list, with an execution that ended half past."""
    for number, hours in enumerate(hours_ago):
        end = HOUR - timedelta(hours=hours) + timedelta(minutes=30)
        drained.put(execution(f"{number:08x}{hours:08x}", end=end, own=usage(number, "0.5")))
        assert drained.drain()


def sums(connection: Connection) -> list[Any]:
    return sorted(map(tuple, connection.execute(SUM)), key=repr)


def kept(database: Database) -> dict[datetime, list[tuple[int, bool]]]:
    """Executions of each row and whether it is folded, by hour."""
    found: dict[datetime, list[tuple[int, bool]]] = {}
    with database.connect("spanledger_admin") as connection:
        for row in connection.execute(text("SELECT * FROM execution_rollup ORDER BY hour, executions DESC, folded")):
            found.setdefault(row.hour, []).append((row.executions, row.folded))
    return found


def test_hours_that_are_over_are_folded_and_the_open_one_is_not(database: Database, drained: Sink) -> None:
    put(drained, 2, 2, 2, 1, 0, 0)
    ago = [HOUR - timedelta(hours=hours) for hours in range(3)]
    deltas = {ago[2]: [(1, False)] * 3, ago[1]: [(1, False)], ago[0]: [(1, False)] * 2}
    assert kept(database) == deltas
    with database.connect("spanledger_admin") as connection:
        before = sums(connection)
    assert compact(database) == 2
    folded = deltas | {ago[2]: [(3, True)], ago[1]: [(1, True)]}
    assert kept(database) == folded
    assert compact(database) == 0
    assert kept(database) == folded
    with database.connect("spanledger_admin") as connection:
        assert sums(connection) == before
    assert differences(database, EVER) == []


def test_a_delta_that_comes_late_is_folded_into_its_hour(database: Database, drained: Sink) -> None:
    put(drained, 2, 2)
    assert compact(database) == 1
    late = HOUR - timedelta(hours=2) + timedelta(minutes=1)
    drained.put(execution("00000000000000ff", end=late, own=usage(7, "0.5")))
    assert drained.drain()
    assert kept(database) == {HOUR - timedelta(hours=2): [(2, True), (1, False)]}
    assert compact(database) == 1
    assert kept(database) == {HOUR - timedelta(hours=2): [(3, True)]}
    assert differences(database, EVER) == []


def test_readers_see_the_same_sums_before_during_and_after(database: Database, drained: Sink) -> None:
    put(drained, 2, 2, 1, 1, 0)
    with database.connect("spanledger_admin") as reader:
        before = sums(reader)
        with database.connect("spanledger_sink") as folding:
            folding.execute(text(FOLD))
            assert sums(reader) == before
            with database.connect("spanledger_admin") as other:
                assert sums(other) == before
        assert sums(reader) == before
    assert [len(rows) for rows in kept(database).values()] == [1, 1, 1]


def test_a_delta_written_while_folding_is_kept(database: Database, drained: Sink) -> None:
    put(drained, 2, 2)
    with database.connect("spanledger_sink") as folding:
        folding.execute(text(FOLD))
        drained.put(execution("00000000000000ff", end=HOUR - timedelta(hours=2)))
        assert drained.drain()  # waits for nobody
    assert kept(database) == {HOUR - timedelta(hours=2): [(2, True), (1, False)]}
    assert differences(database, EVER) == []


def test_one_folds_at_a_time(database: Database, drained: Sink) -> None:
    put(drained, 2, 2)
    with database.connect("spanledger_sink") as other:
        other.execute(text(f"SELECT {LOCK}"))
        assert compact(database) == 0
    assert compact(database) == 1


# Differences


def tampered(database: Database, *statements: str) -> None:
    with writing(database) as rows:
        for statement in statements:
            rows.connection.execute(statement.encode())


def test_an_hour_that_differs_is_found_and_rebuilt(database: Database, drained: Sink) -> None:
    put(drained, 2, 2, 1)
    tampered(database, "UPDATE agent_executions SET tokens_used = tokens_used + 5, cost_usd = 2 WHERE span_id ~ '2$'")
    (found,) = differences(database, EVER)
    assert (found.hour, found.keys) == (HOUR - timedelta(hours=2), 1)
    assert {
        name: (found.rollup[name], found.rows[name]) for name in SUMS if found.rollup[name] != found.rows[name]
    } == {
        "tokens_used": (Decimal(2), Decimal(12)),
        "cost_usd": (Decimal(1), Decimal(4)),
    }
    rebuild(database, found.hour)
    assert differences(database, EVER) == []
    assert kept(database) == {HOUR - timedelta(hours=2): [(2, True)], HOUR - timedelta(hours=1): [(1, False)]}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM execution_rollup", (0, 2)),
        ("DELETE FROM agent_executions", (2, 0)),
        ("UPDATE execution_rollup SET model_used = 'other'", (2, 2)),
        ("UPDATE execution_rollup SET environment = NULL", (2, 2)),
    ],
)
def test_rows_or_roll_up_that_are_missing_or_under_another_key(
    database: Database, drained: Sink, statement: str, said: tuple[int, int]
) -> None:
    put(drained, 1, 1)
    tampered(database, statement)
    assert [(int(one.rollup["executions"]), int(one.rows["executions"])) for one in differences(database, EVER)] == [
        said
    ]
    rebuild(database, HOUR - timedelta(hours=1))
    assert differences(database, EVER) == []


def test_a_batch_stored_while_an_hour_is_rebuilt_counts_once(database: Database, drained: Sink) -> None:
    put(drained, 1)
    tampered(database, "DELETE FROM execution_rollup")
    drained._hang_up()
    with database.sink_connection() as writer:
        drained._connection = writer
        writer.autocommit = True
        with writer.transaction():  # the sink's own becomes a part of it
            drained.put(execution("00000000000000ff", end=HOUR - timedelta(hours=1)), step())
            assert drained.drain()
            rebuild(database, HOUR - timedelta(hours=1))
    assert kept(database) == {HOUR - timedelta(hours=1): [(1, False), (1, True)]}
    assert differences(database, EVER) == []


def test_only_full_hours_are_compared(server: Server) -> None:
    assert first_full_hour(HOUR) == HOUR
    assert first_full_hour(HOUR + timedelta(microseconds=1)) == HOUR + timedelta(hours=1)
