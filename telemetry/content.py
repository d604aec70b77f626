"""Payloads: encoded once to JSON, secrets and e-mail addresses removed, capped with the JSON kept valid.

Redaction has a budget of 3 us per KB, which plain regexes miss by a factor of fifty. So it asks three cheap
questions first (C-speed passes over the bytes): is there an `@`, `=` or `: `, is there a run that looks like a key,
is there a JSON key with a sensitive name? Only a yes runs the patterns behind it.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable
from typing import Any

import orjson

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z
_DECODE_LIMIT = 8  # times the cap: a larger payload is cut as text, not walked as JSON

_SENSITIVE_NAMES = (
    rb"(?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|signing[_-]?key"
    rb"|authorization|credentials?|cookie|session[_-]?key|client[_-]?secret)"
)
_KEY = re.compile(rb"(?i)(?:^|[_.-]|\b)[a-z0-9_.-]{0,64}?" + _SENSITIVE_NAMES + rb"$")
_KEYED_VALUE = re.compile(
    rb'(?i)(\\*"[a-z0-9_.-]{0,64}?' + _SENSITIVE_NAMES + rb'\\*":\s*)(\\*")((?:[^"\\]|\\[^"])*)(\\*")'
)
_ASSIGNED_VALUE = re.compile(
    rb"(?i)((?:[a-z0-9]{1,32}[_.-]){0,4}"
    + _SENSITIVE_NAMES
    + rb"[ ]?(?:=|: )[ ]?)(?!\[redacted\])(?:bearer |basic )?[^\s\"'\\,;&]{3,}"
)
_TOKENS = re.compile(
    rb"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic, Stripe
    rb"|\b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}|\bglpat-[A-Za-z0-9_-]{16,}"
    rb"|\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bhf_[A-Za-z0-9]{16,}"
    rb"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}"
    rb"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"  # JSON Web Token, RFC 7519
    rb"|(?i:\bbearer )[A-Za-z0-9._~+/=-]{16,}"
    rb"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:(?!-----END).)*(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?",
    re.DOTALL,
)
_EMAIL = re.compile(rb"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}")
_URL_PASSWORD = re.compile(rb"(://[^\s/@:\"]{0,64}:)[^\s/@\"]{1,256}@")

# One pass over the bytes keeps what the cheap questions need. The most frequent letters go: prose shrinks to less
# than half and no word is left with a run as long as a key's, whose letters are random.
_CLASSES = bytes(
    ord("a")
    if chr(byte) in string.ascii_letters + string.digits
    else ord("@")
    if chr(byte) in "@="
    else byte
    if chr(byte) in ": "
    else ord(".")
    for byte in range(256)
)
_FREQUENT = b"etaoinsr"
_KEY_RUN = b"a" * 13  # what is left of a key of 20 random characters; the longest part of a UUID has 12
_TOKEN_MARKS = (
    *(b"sk-", b"sk_", b"pk_", b"rk_", b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_", b"glpat-"),
    *(b"xox", b"hf_", b"AKIA", b"ASIA", b"AIza", b"eyJ", b"earer ", b"EARER ", b"-----BEGIN"),
)


class Content:
    """How payloads become what is stored: at most `max_bytes` of JSON, redacted.

    `redact` adds patterns (regexes over the JSON text, as bytes or str) to the built-in ones; each costs its
    own pass over every payload.

    Raises:
        re.error: A pattern is no valid regular expression.
    """

    def __init__(self, max_bytes: int = 8192, redact: Iterable[str] = ()) -> None:
        self.max_bytes = max_bytes
        self._extra = [re.compile(pattern.encode()) for pattern in redact]

    def encode(self, value: object) -> bytes | None:
        """`value` as JSON text in UTF-8, redacted and capped; None for None. Never raises."""
        if value is None:
            return None
        raw = self.redact(_dumps(value))
        if len(raw) > self.max_bytes:
            raw = self._cap(raw)
        return raw.replace(b"\\u0000", b"\\ufffd") if b"\\u0000" in raw else raw

    def encode_json(self, text: str) -> bytes | None:
        """A payload that is JSON text already, as the conventions' message attributes are; else a JSON string."""
        try:
            return self.encode(orjson.loads(text))
        except orjson.JSONDecodeError:
            return self.encode(text)

    def text(self, value: str) -> str:
        """A plain text (an error message, a stack trace, a log line), redacted and capped."""
        raw = value.encode("utf-8", "replace")
        raw = self.redact(raw[: self.max_bytes * _DECODE_LIMIT])
        if len(raw) > self.max_bytes:
            raw = raw[: self.max_bytes] + f"… [{len(raw)} bytes]".encode()
        return raw.decode("utf-8", "replace").replace("\0", "\ufffd")

    def redact(self, raw: bytes) -> bytes:
        """`raw` without secrets and e-mail addresses."""
        classes = raw.translate(_CLASSES, _FREQUENT)
        assigned = b"@" in classes
        if assigned and b"@" in raw:
            raw = _EMAIL.sub(b"[redacted email]", _URL_PASSWORD.sub(rb"\1[redacted]@", raw))
        if (assigned or b": " in classes) and _names_secret(raw):
            raw = _ASSIGNED_VALUE.sub(rb"\1[redacted]", raw)
        if _KEY_RUN in classes and any(mark in raw for mark in _TOKEN_MARKS):
            raw = _TOKENS.sub(b"[redacted]", raw)
        if _has_sensitive_key(raw):
            raw = _KEYED_VALUE.sub(rb"\1\2[redacted]\4", raw)
        for pattern in self._extra:
            raw = pattern.sub(b"[redacted]", raw)
        return raw

    def _cap(self, raw: bytes) -> bytes:
        """Cut a JSON text to `max_bytes`: strings and containers are shortened, and say by how much."""
        if len(raw) <= self.max_bytes * _DECODE_LIMIT:
            budget = self.max_bytes * 3 // 4
            while budget > 64:
                cut = orjson.dumps(_shorten(orjson.loads(raw), [budget]))
                if len(cut) <= self.max_bytes:
                    return cut
                budget //= 2
        head = raw[: self.max_bytes // 2].decode("utf-8", "ignore")
        cut = orjson.dumps({"truncated": f"{len(raw)} bytes", "head": head})
        return cut if len(cut) <= self.max_bytes else orjson.dumps({"truncated": f"{len(raw)} bytes"})


def _dumps(value: object) -> bytes:
    try:
        return orjson.dumps(value, default=_plain, option=_OPTIONS)
    except (TypeError, ValueError, RecursionError):  # integers over 64 bits, lone surrogates, cycles
        try:
            text = json.dumps(value, default=_plain, ensure_ascii=False, skipkeys=True).encode("utf-8", "replace")
            return orjson.dumps(json.loads(text, parse_int=_int, parse_constant=lambda _: None))
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


_key_is_sensitive: dict[bytes, bool] = {}


def _has_sensitive_key(raw: bytes) -> bool:
    pieces = raw.split(b'":')
    for piece in pieces[:-1] if len(pieces) > 1 else ():
        key = piece[piece.rfind(b'"') + 1 :]
        sensitive = _key_is_sensitive.get(key)
        if sensitive is None:
            sensitive = _KEY.search(key.rstrip(b"\\")) is not None
            if len(_key_is_sensitive) < 4096:
                _key_is_sensitive[key] = sensitive
        if sensitive:
            return True
    return False


def _names_secret(raw: bytes) -> bool:
    low = raw.lower()
    return any(word in low for word in (b"pass", b"pwd", b"secret", b"token", b"key", b"auth", b"cred", b"cookie"))


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
