"""Redaction: secrets and e-mail addresses leave a payload before it is stored or exported.

The budget is 3 us per KB, which plain regexes miss by a factor of fifty. So cheap questions come first, answered by
C-speed look-ups in the strings of the payload, and a pattern runs only where one of them said yes.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

_MARK = b"[redacted]"
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

# What a payload may hold, as bits: the patterns to run.
_EMAILS, _ASSIGNMENTS, _KEYS, _SECRETS = 1, 2, 4, 8

_WORDS = ("pass", "pwd", "secret", "token", "key", "auth", "cred", "cookie")  # in every one of _SENSITIVE_NAMES
_MARKS = (
    *("sk-", "sk_", "pk_", "rk_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-"),
    *("xox", "hf_", "AKIA", "ASIA", "AIza", "eyJ", "earer ", "EARER ", "-----BEGIN"),
)
# A key is a long run of random letters and digits; without the most frequent letters no word is.
_RUNS = bytes(ord("a") if chr(byte) in string.ascii_letters + string.digits else ord(".") for byte in range(256))
_FREQUENT = b"etaoinsr"
_KEY_RUN = b"a" * 13  # of a key of 20 as many are left; the longest part of a UUID has 12
_FEW = 16  # values to look at one by one; a payload with more is looked at as text


class Redactor:
    """Removes what matches the built-in patterns and `extra` ones (regexes over JSON text in UTF-8).

    Raises:
        re.error: A pattern is no valid regular expression.
    """

    def __init__(self, extra: Iterable[str] = ()) -> None:
        self._extra = [re.compile(pattern.encode()) for pattern in extra]

    def text(self, raw: bytes) -> bytes:
        """A text without its secrets."""
        return self._clean(raw, _suspect_text(raw.decode("utf-8", "replace")))

    def json(self, raw: bytes, value: object) -> bytes:
        """A JSON text without its secrets; `value` is what it was made from, quicker to look through."""
        suspected = _suspect(value)
        return self.text(raw) if suspected is None else self._clean(raw, suspected)

    def _clean(self, raw: bytes, suspected: int) -> bytes:
        if suspected:
            if suspected & _EMAILS:
                raw = _EMAIL.sub(b"[redacted email]", _URL_PASSWORD.sub(rb"\1[redacted]@", raw))
            if suspected & _ASSIGNMENTS:
                raw = _ASSIGNED_VALUE.sub(rb"\1[redacted]", raw)
            if suspected & _KEYS:
                raw = _KEYED_VALUE.sub(rb"\1\2[redacted]\4", raw)
            if suspected & _SECRETS:
                raw = _TOKENS.sub(_MARK, raw)
        for pattern in self._extra:
            raw = pattern.sub(_MARK, raw)
        return raw


def _suspect(value: object) -> int | None:
    """Which patterns to run, from the strings of a payload of few, plain values; None for any other."""
    suspected, seen, stack = 0, 0, [value]
    while stack:
        item = stack.pop()
        kind = type(item)
        seen += 1
        if seen > _FEW:
            return None
        if kind is str:
            suspected |= _suspect_text(item)  # type: ignore[arg-type]  # kind says so, and is quicker than isinstance
        elif kind is dict:
            for key, child in item.items():  # type: ignore[attr-defined]
                if type(key) is not str:
                    return None
                if _known_keys.get(key) is not False and _is_sensitive(key):
                    suspected |= _KEYS
                stack.append(child)
        elif kind is list or kind is tuple:
            stack.extend(item[: _FEW + 1])  # type: ignore[index]
        elif kind is not int and kind is not float and kind is not bool and item is not None:
            return None  # a model, a dataclass …: only its JSON shows what is in it
    return suspected


def _suspect_text(text: str) -> int:
    suspected = _EMAILS if "@" in text else 0
    if "=" in text or (":" in text and ": " in text):
        low = text.lower()
        suspected |= _ASSIGNMENTS if any(word in low for word in _WORDS) else 0
    if '"' in text and '":' in text:
        suspected |= _KEYS if any(map(_is_sensitive, _keys(text))) else 0
    # Every mark has one of these characters, which prose has seldom; only then is it worth looking for a run.
    if (
        ("-" in text or "_" in text or "J" in text or "K" in text or "I" in text or "B" in text)
        and len(text) >= 16
        and _KEY_RUN in text.encode("utf-8", "replace").translate(_RUNS, _FREQUENT)
        and any(mark in text for mark in _MARKS)
    ):
        suspected |= _SECRETS
    return suspected


def _keys(text: str) -> Iterable[str]:
    """The keys of the objects in a text that holds JSON, also JSON in a JSON string."""
    for piece in text.split('":')[:-1]:
        yield piece[piece.rfind('"') + 1 :].rstrip("\\")


_known_keys: dict[str, bool] = {}


def _is_sensitive(key: str) -> bool:
    sensitive = _known_keys.get(key)
    if sensitive is None:
        sensitive = _KEY.search(key.encode("utf-8", "replace")) is not None
        if len(_known_keys) < 4096 and len(key) < 256:
            _known_keys[key] = sensitive
    return sensitive
