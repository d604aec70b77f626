"""The hourly roll-up: what a batch of executions adds up to, per hour and key, appended with the batch.

A delta is a row of `execution_rollup`: no row is ever updated, so no two writers wait for each other. What the
columns mean is in `migrations/versions/0003_rollup.py`, which says the same in SQL.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation
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

_AT = {name: index for index, name in enumerate(EXECUTION_COLUMNS)}
_CREATED_AT, _DURATION, _TOKENS_USED = map(_AT.__getitem__, ("created_at", "execution_time_ms", "tokens_used"))
_COST, _COST_SOURCE = _AT["cost_usd"], _AT["cost_source"]
_key = itemgetter(*(_AT[name] for name in KEY))
_tokens = itemgetter(*(_AT[name] for name in TOKENS))
_BOUNDS_MS = [second * 1000 for second in AGENT_SECONDS]
_LE = [*(repr(second).encode() for second in AGENT_SECONDS), b"Infinity"]
_EXACT = Context(prec=500, traps=[Inexact, InvalidOperation])  # costs add up to the last digit, or are refused


def add(connection: psycopg.Connection[Any], lines: Sequence[bytes]) -> None:
    """Append what these lines of executions add up to, in the open transaction.

    Raises:
        ValueError: One of them says what cannot be added up.
    """
    if lines:
        with connection.cursor() as cursor, cursor.copy(_COPY.encode()) as copy:
            copy.write(deltas(lines))


def deltas(lines: Iterable[bytes]) -> bytes:
    """The rows to append, as COPY text. Payloads are not looked at, names are passed on as they are written.

    Raises:
        ValueError: A line says what cannot be added up.
    """
    groups: defaultdict[tuple[bytes, ...], list[tuple[bytes, ...]]] = defaultdict(list)
    for line in lines:
        columns = line.split(b"\t", _COST_SOURCE + 1)
        ended = columns[_CREATED_AT]
        if len(ended) != 29 or not ended.endswith(b"+00"):
            raise ValueError("created_at is not written as the spool writes it")
        bucket = _LE[bisect_left(_BOUNDS_MS, float(columns[_DURATION]))]
        key = (ended[:13] + b":00:00+00", bucket, *_key(columns))
        groups[key].append((columns[_DURATION], columns[_COST], columns[_COST_SOURCE], *_tokens(columns)))
    try:
        return b"".join([_row(key, rows) for key, rows in groups.items()])
    except (DecimalException, OverflowError) as error:
        raise ValueError("a duration or a cost that cannot be added up") from error


def _row(key: tuple[bytes, ...], rows: list[tuple[bytes, ...]]) -> bytes:
    durations, costs, sources, *tokens = zip(*rows, strict=True)
    known = [Decimal(cost.decode()) for cost in costs if cost != b"\\N"]
    unpriced = sum(map(_is_unpriced, costs, sources, tokens[0]))
    sums = (
        len(rows),
        sum([round(float(duration) * 1e6) for duration in durations]),
        *(sum(map(int, column)) for column in tokens),
        reduce(_EXACT.add, known, Decimal(0)),
        len(known),
        unpriced,
    )
    return b"\t".join((*key, *(str(number).encode() for number in sums))) + b"\n"


def _is_unpriced(cost: bytes, source: bytes, tokens_used: bytes) -> bool:
    """Whether its cost was more than what is known of it."""
    return source in (b"unknown", b"partial") or (cost == b"\\N" and int(tokens_used) > 0)
