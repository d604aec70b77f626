from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from app.database import Database
from app.pagination import Position, decode, encode, fetch
from app.problems import Problem
from app.tables import agent_executions
from tests.app.rows import NOW, Rows, writing

HEX = st.text("0123456789abcdef", min_size=16, max_size=32)
POSITION = Position(NOW.replace(microsecond=1), "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC)),
    HEX,
    HEX,
    st.text('ab{}"µ'),
)
def test_a_cursor_carries_every_sort_key(at: datetime, trace_id: str, span_id: str, filters: str) -> None:
    position = Position(at, trace_id, span_id)
    assert decode(encode(position, filters), filters) == position


def test_the_same_moment_in_another_zone_is_the_same_cursor() -> None:
    elsewhere = POSITION._replace(created_at=POSITION.created_at.astimezone(timezone(timedelta(hours=9))))
    assert encode(elsewhere, "") == encode(POSITION, "")


def mistakes() -> Iterator[str]:
    good = encode(POSITION, "{}")
    keys: list[Any] = orjson.loads(base64.urlsafe_b64decode(good + "=="))
    yield from ("", " ", "garbage", "é", "null", good + "=", good + "\n", " " + good, good * 2)
    for number in range(len(good)):
        yield good[:number] + good[number + 1 :]
    for content in (
        [NOW.isoformat(), *keys[1:]],
        ["2026-03-10T12:00:00.000001", *keys[1:]],
        ["9999-12-31T23:59:59.999999-23:59", *keys[1:]],
        [keys[0], keys[1], "ffffffffffffffff", keys[3]],
        [keys[0], keys[1], 7, keys[3]],
        [keys[0], keys[1], "\x00", keys[3]],
        [1, 2, 3, 4],
        keys[:3],
        {"a": 1, "b": 2, "c": 3, "d": 4},
        7,
    ):
        yield base64.urlsafe_b64encode(orjson.dumps(content)).decode().rstrip("=")


@pytest.mark.parametrize("cursor", list(mistakes()), ids=repr)
def test_anything_else_is_refused(cursor: str) -> None:
    with pytest.raises(Problem) as refused:
        decode(cursor, "{}")
    assert (refused.value.status, refused.value.title) == (400, "Bad Request")
    assert refused.value.detail.endswith("or leave cursor out to start at the newest row.")


def test_a_cursor_of_other_filters_is_refused() -> None:
    with pytest.raises(Problem, match="with the same filters"):
        decode(encode(POSITION, '{"agent":["a"]}'), '{"agent":["b"]}')


@pytest.fixture
def rows(database: Database) -> Iterator[Rows]:
    with writing(database) as rows:
        yield rows


@contextmanager
def reading(database: Database) -> Iterator[Connection]:
    with database.connect("spanledger_admin") as connection:
        yield connection


def pages(database: Database, limit: int, between: Any = lambda: None) -> list[list[tuple[Any, ...]]]:
    """All pages as their sort keys; `between` runs after each."""
    found = []
    cursor = None
    while True:
        with reading(database) as connection:
            page = fetch(connection, select(agent_executions), agent_executions, limit=limit, cursor=cursor, filters="")
        found.append([(row["created_at"], row["trace_id"], row["span_id"]) for row in page.rows])
        cursor = page.next_cursor
        if cursor is None:
            return found
        between()


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["created_at"], row["trace_id"], row["span_id"]


def many(rows: Rows) -> list[tuple[Any, ...]]:
    """40 rows over two days, most of them at equal times, with span ids that do not follow the time."""
    made = [
        rows.execution(
            created_at=NOW - timedelta(hours=6) * (number % 5) - timedelta(microseconds=number % 2),
            trace_id=f"{number % 3:032x}",
            span_id=f"{number * 7 % 40:016x}",
        )
        for number in range(40)
    ]
    return sorted(map(key, made), reverse=True)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 39, 40, 41])
def test_pages_have_every_row_once_newest_first(database: Database, rows: Rows, limit: int) -> None:
    expected = many(rows)
    found = pages(database, limit)
    assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
    assert len(found) == -(-40 // limit)
    assert [row for page in found for row in page] == expected


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_rows_that_arrive_between_pages_neither_repeat_nor_displace_any(
    database: Database, rows: Rows, limit: int
) -> None:
    """New rows at equal times, newer ones and late ones: the rows of the beginning all come, each once."""
    expected = many(rows)
    numbers = iter(range(1000, 2000))

    def arrive() -> None:
        for ago in (timedelta(seconds=-1), timedelta(0), timedelta(hours=6), timedelta(hours=30)):
            number = next(numbers)
            rows.execution(created_at=NOW - ago, trace_id=f"{number % 3:032x}", span_id=f"{number:016x}")

    found = [row for page in pages(database, limit, arrive) for row in page]
    assert found == sorted(set(found), reverse=True)
    assert [row for row in found if row in expected] == expected


def test_no_rows_are_one_empty_page(database: Database) -> None:
    assert pages(database, 5) == [[]]
