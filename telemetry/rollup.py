"""The hourly roll-up: what a batch of executions adds up to, per hour and key, appended with the batch.

A delta is a row of `execution_rollup`: no row is ever updated, so no two writers wait for each other. What the
columns mean is in `migrations/versions/0003_rollup.py`, which says the same in SQL.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from decimal import Context, Decimal, Inexact, InvalidOperation
from functools import reduce
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from .execution import EXECUTION_COLUMNS
from .metrics import AGENT_SECONDS

if TYPE_CHECKING:
    import psycopg

KEY = ("service_name", "environment", "agent_name", "model_used", "status", "is_root")
TOKENS = (
    *("tokens_used", "input_tokens", "cache_read_tokens", "cache_write_tokens"),
    *("output_tokens", "reasoning_tokens", "tokens_total"),
)
ROLLUP_COLUMNS = (
    *("hour", "duration_le", *KEY),
    *("executions", "execution_time_ns", *TOKENS, "cost_usd", "priced", "unpriced"),
)
_COPY = f"COPY execution_rollup ({', '.join(ROLLUP_COLUMNS)}) FROM STDIN"

_CREATED_AT = EXECUTION_COLUMNS.index("created_at")
_SUMMED = slice(EXECUTION_COLUMNS.index("execution_time_ms"), EXECUTION_COLUMNS.index("cost_source") + 1)
_key = itemgetter(*map(EXECUTION_COLUMNS.index, KEY))
_HOUR, _ZONE = slice(13), slice(26, None)  # of created_at, as the spool writes it
_BOUNDS_MS = [second * 1000 for second in AGENT_SECONDS]
_LE = [*(repr(second).encode() for second in AGENT_SECONDS), b"Infinity"]
_EXACT = Context(prec=500, traps=[Inexact, InvalidOperation])  # costs add up to the last digit, or are refused


def add(connection: psycopg.Connection[Any], rows: bytes) -> None:
    """Append rows that `deltas` made, in the open transaction."""
    if rows:
        with connection.cursor() as cursor, cursor.copy(_COPY.encode()) as copy:
            copy.write(rows)


def deltas(lines: Iterable[bytes]) -> bytes:
    """The rows to append, as COPY text. Payloads are not looked at, names are passed on as they are written.

    Raises:
        ValueError: A line says what cannot be added up.
    """
    groups: defaultdict[tuple[bytes, bytes, int, tuple[bytes, ...]], list[list[bytes]]] = defaultdict(list)
    try:
        for line in lines:
            columns = line.split(b"\t", _SUMMED.stop)
            ended, summed = columns[_CREATED_AT], columns[_SUMMED]
            bucket = bisect_left(_BOUNDS_MS, float(summed[0]))
            groups[ended[_HOUR], ended[_ZONE], bucket, _key(columns)].append(summed)
        return b"".join([_row(*key, rows) for key, rows in groups.items()])
    except (LookupError, ArithmeticError) as error:
        raise ValueError("a line that cannot be added up") from error


def _row(hour: bytes, zone: bytes, bucket: int, key: tuple[bytes, ...], rows: list[list[bytes]]) -> bytes:
    if zone != b"+00":
        raise ValueError("created_at is not written as the spool writes it")
    columns = dict(zip(EXECUTION_COLUMNS[_SUMMED], zip(*rows, strict=True), strict=True))
    known = [Decimal(cost.decode()) for cost in columns["cost_usd"] if cost != b"\\N"]
    sums = (
        len(rows),
        sum([round(float(duration) * 1e6) for duration in columns["execution_time_ms"]]),
        *(sum(map(int, columns[name])) for name in TOKENS),
        reduce(_EXACT.add, known, Decimal(0)),
        len(known),
        sum(map(_is_unpriced, columns["cost_usd"], columns["cost_source"], columns["tokens_used"])),
    )
    return b"\t".join((hour + b":00:00+00", _LE[bucket], *key, *(str(number).encode() for number in sums))) + b"\n"


def _is_unpriced(cost: bytes, source: bytes, tokens_used: bytes) -> bool:
    """Whether its cost was more than what is known of it."""
    return source in (b"unknown", b"partial") or (cost == b"\\N" and int(tokens_used) > 0)
