"""Keyset pages, newest first: an opaque cursor that carries every sort key."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Select, Table, tuple_

from app.problems import Problem

HEX = re.compile(r"[0-9a-f]+")


class Position(NamedTuple):
    """The sort keys of a row; together they are its primary key, so no two rows share a position."""

    created_at: datetime
    trace_id: str
    span_id: str


class Page(NamedTuple):
    rows: Sequence[dict[str, Any]]
    next_cursor: str | None


def newest_first(select: Select[Any], table: Table) -> Select[Any]:
    """`select` in the one order lists have."""
    return select.order_by(table.c.created_at.desc(), table.c.trace_id.desc(), table.c.span_id.desc())


def fetch(
    connection: Connection, select: Select[Any], table: Table, *, limit: int, cursor: str | None, filters: str
) -> Page:
    """Up to `limit` rows of `select` after `cursor`, and the cursor of the page that follows.

    `filters` is any text that is the same for the same filters: a cursor continues only the list it came
    from. A row that arrives between two pages moves no other row, as it would with OFFSET: none comes twice,
    none is left out.

    Raises:
        Problem: 400, the cursor is not one of ours for these filters.
    """
    if cursor is not None:
        last = decode(cursor, filters)
        # The comparison of three keys alone would not let Postgres leave out the partitions after the cursor.
        select = select.where(
            table.c.created_at <= last.created_at,
            tuple_(table.c.created_at, table.c.trace_id, table.c.span_id) < last,
        )
    rows = [row._asdict() for row in connection.execute(newest_first(select, table).limit(limit + 1))]
    if len(rows) <= limit:
        return Page(rows, None)
    end = rows[limit - 1]
    return Page(rows[:limit], encode(Position(end["created_at"], end["trace_id"], end["span_id"]), filters))


def encode(position: Position, filters: str) -> str:
    """The cursor after this position: base64url of a JSON array, the last item of which is a checksum.

    The checksum finds mistakes, such as a cut cursor or another list's; it is no signature, for a cursor
    opens nothing that the filters would not.
    """
    at = position.created_at.astimezone(UTC).isoformat(timespec="microseconds")
    keys = [at, position.trace_id, position.span_id]
    checksum = hashlib.sha256(orjson.dumps([*keys, filters])).hexdigest()[:16]
    return base64.urlsafe_b64encode(orjson.dumps([*keys, checksum])).decode().rstrip("=")


def decode(cursor: str, filters: str) -> Position:
    """The position a cursor stands for.

    Raises:
        Problem: 400, it is not what `encode` makes for these filters.
    """
    try:
        at, trace_id, span_id, _ = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        position = Position(datetime.fromisoformat(at), trace_id, span_id)
        if HEX.fullmatch(trace_id + span_id) and encode(position, filters) == cursor:
            return position
    except (ValueError, TypeError, OverflowError):
        pass
    raise Problem(
        400,
        "Bad Request",
        "The cursor does not belong to this list. Send next_cursor of the previous page unchanged and with "
        "the same filters, or leave cursor out to start at the newest row.",
    )
