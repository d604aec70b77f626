"""Values as Postgres COPY text: one row a line, tab between columns, backslash escapes.

Source: https://www.postgresql.org/docs/current/sql-copy.html, "Text Format".
"""

from __future__ import annotations

import re
import time
from decimal import Decimal

NULL = "\\N"
_NULL_DOCUMENT = b"\\N"
_UNESCAPED = {"t": "\t", "n": "\n", "r": "\r"}
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\ufffd"})


def line(columns: tuple[str | None, ...], documents: tuple[bytes | None, ...]) -> bytes:
    """A row: its columns, None for NULL, then its JSON documents as orjson wrote them, then the newline.

    JSON has its control characters escaped already, so only backslashes are left to double. NUL, which Postgres
    cannot hold, and what UTF-8 cannot say (lone surrogates) are replaced.
    """
    return row("\t".join(fields(*columns)), documents)


def fields(*values: str | None) -> list[str]:
    """Each value as a column's text, None for NULL."""
    texts = [NULL if value is None else value for value in values]
    whole = "".join(texts)
    # Nearly every value is clean, and a look at all of them is cheaper than one at each.
    if whole.count("\\") > values.count(None) or "\t" in whole or "\n" in whole or "\r" in whole or "\0" in whole:
        texts = [NULL if value is None else value.translate(_ESCAPES) for value in values]
    return texts


def row(columns: str, documents: tuple[bytes | None, ...]) -> bytes:
    """A row of columns that are COPY text already, tabs between them; see `line`."""
    pieces = [columns.encode("utf-8", "replace")]
    for document in documents:
        if document is None:
            pieces.append(_NULL_DOCUMENT)
        else:
            pieces.append(document if b"\\" not in document else document.replace(b"\\", b"\\\\"))
    return b"\t".join(pieces) + b"\n"


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


def period(start: int, end: int) -> str:
    """Two moments as two columns, see `timestamp`."""
    second, prefix = _second
    base = second * 1_000_000_000
    first, last = start - base, end - base
    if 0 <= first < 1_000_000_000 and 0 <= last < 1_000_000_000:  # most calls are short
        return f"{prefix}{first // 1000:06d}+00\t{prefix}{last // 1000:06d}+00"
    return f"{timestamp(start)}\t{timestamp(end)}"


def timestamp(nanoseconds: int) -> str:
    """A moment, in nanoseconds since the epoch, floored to the microseconds that timestamptz holds; UTC."""
    global _second  # the text of the last second: formatting it costs more than the numbers of the whole row
    second = nanoseconds // 1_000_000_000
    known, prefix = _second
    if second != known:
        prefix = time.strftime("%Y-%m-%d %H:%M:%S.", time.gmtime(second))
        _second = (second, prefix)
    return f"{prefix}{str(1_000_000 + (nanoseconds - second * 1_000_000_000) // 1000)[1:]}+00"
