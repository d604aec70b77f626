"""Payloads: encoded once to JSON, redacted, and capped with the JSON kept valid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import orjson

from .redact import Redactor

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z
_DECODE_LIMIT = 8  # times the cap: a larger payload is cut as text before anything else, not walked as JSON
_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")  # jsonb takes no NUL; an escaped backslash before `u0000` is none


class Content:
    """How payloads become what is stored: at most `max_bytes` of JSON, redacted.

    `redact` adds patterns (regexes over the JSON text, as bytes or str) to the built-in ones; each costs its
    own pass over every payload.

    Raises:
        re.error: A pattern is no valid regular expression.
    """

    def __init__(self, max_bytes: int = 8192, redact: Iterable[str] = ()) -> None:
        self.max_bytes = max_bytes
        self._limit = max_bytes * _DECODE_LIMIT
        self._redactor = Redactor(redact)

    def encode(self, value: object) -> bytes | None:
        """`value` as JSON text in UTF-8, redacted and capped; None for None. Never raises."""
        if value is None:
            return None
        try:
            written = orjson.dumps(value, default=_plain, option=_OPTIONS)
        except (TypeError, ValueError, RecursionError):  # integers over 64 bits, lone surrogates, cycles
            written = _dumps(value)
        if len(written) > self._limit:
            cut = written[: self._limit] + b'"'  # the quote closes a secret that the cut left open
            raw = self._head(self._redactor.text(cut), len(written))
        else:
            raw = self._redactor.json(written, value)
            if raw is not written and not _is_json(raw):  # a pattern took a quote or half an escape with it
                raw = orjson.dumps(raw.decode("utf-8", "replace"))
            if len(raw) > self.max_bytes:
                raw = self._cap(raw)
        return _NUL.sub(rb"\1\\ufffd", raw) if b"\\" in raw and b"\\u0000" in raw else raw

    def encode_json(self, text: str) -> bytes | None:
        """A payload that is JSON text already, as the conventions' message attributes are; else a JSON string."""
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return self.encode(text)
        return b"null" if value is None else self.encode(value)

    def text(self, value: str) -> str:
        """A plain text (an error message, a stack trace, a log line), redacted and capped."""
        raw = self._redactor.text(value[: self._limit].encode("utf-8", "replace"))
        text = raw[: self.max_bytes].decode("utf-8", "ignore").replace("\0", "\ufffd")
        return text if len(raw) <= self.max_bytes else f"{text}… [{len(value)} characters]"

    def _cap(self, raw: bytes) -> bytes:
        """Cut a JSON text to `max_bytes`: strings and containers are shortened, and say by how much."""
        budget = self.max_bytes * 3 // 4
        while budget > 64:
            cut = orjson.dumps(_shorten(orjson.loads(raw), [budget]))
            if len(cut) <= self.max_bytes:
                return cut
            budget //= 2
        return self._head(raw, len(raw))

    def _head(self, raw: bytes, size: int) -> bytes:
        """The beginning of a JSON text, as a string in an object that says how many bytes it had."""
        head = raw[: self.max_bytes // 2].decode("utf-8", "ignore")
        cut = orjson.dumps({"truncated": f"{size} bytes", "head": head})
        return cut if len(cut) <= self.max_bytes else orjson.dumps({"truncated": f"{size} bytes"})


def _is_json(raw: bytes) -> bool:
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    return True


def _dumps(value: object) -> bytes:
    """What orjson refuses."""
    try:
        text = json.dumps(value, default=_plain, ensure_ascii=False, skipkeys=True).encode("utf-8", "replace")
        return orjson.dumps(json.loads(text, parse_int=_int))
    except Exception:
        return orjson.dumps(_repr(value).encode("utf-8", "replace").decode())


def _int(digits: str) -> int | str:
    return int(digits) if len(digits) < 19 else digits


def _plain(value: object) -> Any:
    """What orjson cannot encode itself: pydantic models, sets, bytes; anything else by its text."""
    dump = getattr(value, "model_dump", None)
    if dump is not None and not isinstance(value, type):
        return dump(mode="json")
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "replace")
    return _repr(value)


def _repr(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _shorten(value: Any, left: list[int]) -> Any:
    """`value` with about `left[0]` characters of content; what is cut is named in its place."""
    if isinstance(value, str):
        room = max(left[0], 0)
        left[0] -= len(value.encode()) + 4
        if len(value.encode()) <= room:
            return value
        kept = value.encode()[:room].decode("utf-8", "ignore")
        space = kept.rfind(" ", max(0, len(kept) - 200))  # never half a word: it could be half a secret
        kept = kept[:space] if space > 0 else kept
        return f"{kept}… [{len(value) - len(kept)} more characters]"
    if isinstance(value, list):
        items: list[Any] = []
        for index, item in enumerate(value):
            if left[0] <= 0:
                items.append(f"… [{len(value) - index} more items]")
                break
            items.append(_shorten(item, left))
        return items
    if isinstance(value, dict):
        entries: dict[str, Any] = {}
        for index, (key, item) in enumerate(value.items()):
            if left[0] <= 0:
                entries["…"] = f"[{len(value) - index} more keys]"
                break
            left[0] -= len(key) + 4
            entries[key] = _shorten(item, left)
        return entries
    left[0] -= 8
    return value
