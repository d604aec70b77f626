"""Values as Postgres COPY text: one row a line, tab between columns, backslash escapes.

Source: https://www.postgresql.org/docs/current/sql-copy.html, "Text Format".
"""

from __future__ import annotations

import functools
import time
from decimal import Decimal

NULL = "\\N"
_NULL_DOCUMENT = (b"\t", b"\\N")
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\ufffd"})


def line(columns: tuple[str, ...], documents: tuple[bytes | None, ...]) -> bytes:
    """A row: its columns, then its JSON documents as orjson wrote them, then the newline.

    JSON has its control characters escaped already, so only backslashes are left to double. What UTF-8 cannot
    say (lone surrogates) is replaced.
    """
    pieces = ["\t".join(columns).encode("utf-8", "replace")]
    for document in documents:
        if document is None:
            pieces += _NULL_DOCUMENT
        else:
            pieces += b"\t", document if document.find(b"\\") < 0 else document.replace(b"\\", b"\\\\")
    pieces.append(b"\n")
    return b"".join(pieces)  # the documents are most of a row: they are copied once


def text(value: str | None) -> str:
    """A string; NUL, which Postgres cannot hold, is replaced."""
    if value is None:
        return NULL
    if value.isprintable() and "\\" not in value:
        return value
    return value.translate(_ESCAPES)


@functools.lru_cache(4096)
def name(value: str | None) -> str:
    """A string that comes again and again: the name of an agent, a model, a user."""
    return text(value)


def number(value: int | float | Decimal | None) -> str:
    """A number in decimal notation."""
    return NULL if value is None else str(value)


_second = (0, "")


def timestamp(nanoseconds: int) -> str:
    """A moment, in nanoseconds since the epoch, floored to the microseconds that timestamptz holds; UTC."""
    global _second  # the text of the last second: formatting it costs more than the numbers of the whole row
    second = nanoseconds // 1_000_000_000
    known, prefix = _second
    if second != known:
        prefix = time.strftime("%Y-%m-%d %H:%M:%S.", time.gmtime(second))
        _second = (second, prefix)
    return f"{prefix}{str(1_000_000 + (nanoseconds - second * 1_000_000_000) // 1000)[1:]}+00"
