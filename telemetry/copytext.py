"""Values as Postgres COPY text: one row a line, tab between columns, backslash escapes.

Source: https://www.postgresql.org/docs/current/sql-copy.html, "Text Format".
"""

from __future__ import annotations

import re
import time
from decimal import Decimal

_NULL = "\\N"
_NULL_DOCUMENT = (b"\t", b"\\N")
_UNESCAPED = {"t": "\t", "n": "\n", "r": "\r"}
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\ufffd"})


def line(columns: tuple[str | None, ...], documents: tuple[bytes | None, ...]) -> bytes:
    """A row: its columns, None for NULL, then its JSON documents as orjson wrote them, then the newline.

    JSON has its control characters escaped already, so only backslashes are left to double. NUL, which Postgres
    cannot hold, and what UTF-8 cannot say (lone surrogates) are replaced.
    """
    row = "\t".join([_NULL if column is None else column for column in columns])
    # Nearly every row is clean, and a look at the whole of it is cheaper than one at each column.
    if (
        row.count("\t") >= len(columns)
        or row.count("\\") > columns.count(None)
        or "\n" in row
        or "\r" in row
        or "\0" in row
    ):
        row = "\t".join([_NULL if column is None else column.translate(_ESCAPES) for column in columns])
    pieces = [row.encode("utf-8", "replace")]
    for document in documents:
        if document is None:
            pieces += _NULL_DOCUMENT
        else:
            pieces += b"\t", document if document.find(b"\\") < 0 else document.replace(b"\\", b"\\\\")
    pieces.append(b"\n")
    return b"".join(pieces)  # the documents are most of a row: they are copied once


def values(line: bytes, count: int) -> list[str | None]:
    """The first `count` values of a line, None for NULL: what `line` was given, or what replaced it.

    Raises:
        ValueError: The line has fewer, or is no UTF-8.
    """
    fields = line.removesuffix(b"\n").split(b"\t", count)[:count]
    if len(fields) < count:
        raise ValueError(f"{len(fields)} of {count} columns")
    return [None if field == b"\\N" else _unescape(field.decode()) for field in fields]


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field
    return re.sub(r"\\(.)", lambda escape: _UNESCAPED.get(escape[1], escape[1]), field)


def number(value: Decimal | None) -> str | None:
    """A number in decimal notation."""
    return None if value is None else str(value)


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
