"""Redaction: secrets and e-mail addresses leave a payload before it is stored or exported.

The budget is 3 us per KB, which plain regexes miss by a factor of fifty. So cheap questions come first, answered by
C-speed look-ups in the strings of the payload. Only where one of them says yes is the payload taken apart, and its
patterns run over the strings as they are, not as JSON escapes them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from typing import Any

import orjson

_MARK = "[redacted]"
_NAMES = (
    r"(?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|signing[_-]?key"
    r"|authorization|credentials?|cookie|session[_-]?key|client[_-]?secret)"
)
_KEY = re.compile(rf"(?i)(?:^|[_.-]|\b)[a-z0-9_.-]{{0,64}}?{_NAMES}$")
_KEYED_VALUE = re.compile(rf'(?i)("[a-z0-9_.-]{{0,64}}?{_NAMES}"\s*:\s*)"(?:[^"\\]|\\.)*"', re.DOTALL)
_ASSIGNED_VALUE = re.compile(
    rf"(?i)((?:[a-z0-9]{{1,32}}[_.-]){{0,4}}{_NAMES}[\"']?[ ]?(?:=|: )[ ]?)"
    r"(?:(?P<quote>[\"'])(?:(?!(?P=quote))[^\\\n]|\\.){1,1000}(?P=quote)"
    r"|(?!\[redacted\])(?:bearer |basic )?[^\s\"'\\,;&]{3,})"
)
_SECRET = re.compile(
    r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic, Stripe
    r"|\b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}|\bglpat-[A-Za-z0-9_-]{16,}"
    r"|\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bhf_[A-Za-z0-9]{16,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"  # JSON Web Token, RFC 7519
    r"|(?i:\bbearer )[A-Za-z0-9._~+/=-]{16,}"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:(?!-----END).)*(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?",
    re.DOTALL,
)
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}")
_URL_PASSWORD = re.compile(r"(://[^\s/@:\"]{0,64}:)[^\s/@\"]{1,256}@")

_WORDS = ("pass", "pwd", "secret", "token", "key", "auth", "cred", "cookie")  # one is in each of _NAMES
_MARKS = re.compile(  # one is at the beginning of each _SECRET
    r"[sr]k[-_]|pk[-_]|gh[pousr]_|github_pat_|glpat-|xox|hf_|A[KS]IA|AIza|eyJ|earer |EARER |-----BEGIN"
)
# A key is a long run of random characters; without the most frequent letters few words are.
_RUNS = bytes(ord("a") if chr(byte) in string.ascii_letters + string.digits + "-_" else ord(".") for byte in range(256))
_FREQUENT = b"etaoinsr"
_KEY_RUN = b"a" * 13
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
        text = raw.decode("utf-8", "replace")
        return self._own(_clean(text).encode() if _suspicious(text) else raw)

    def json(self, raw: bytes, value: object) -> bytes:
        """A JSON text without its secrets; `value` is what it was made from, quicker to look through."""
        suspicious = _suspicious_value(value)
        if suspicious is None:
            suspicious = _suspicious(raw.decode("utf-8", "replace"))
        return self._own(orjson.dumps(_clean_value(orjson.loads(raw))) if suspicious else raw)

    def _own(self, raw: bytes) -> bytes:
        for pattern in self._extra:
            raw = pattern.sub(_MARK.encode(), raw)
        return raw


def _suspicious_value(value: object) -> bool | None:
    """Whether a payload of few, plain values may hold a secret; None for any other."""
    seen, stack = 0, [value]
    while stack:
        item = stack.pop()
        kind = type(item)
        seen += 1
        if seen > _FEW:
            return None
        if kind is str:
            if _suspicious(item):  # type: ignore[arg-type]  # kind says so, and is quicker than isinstance
                return True
        elif kind is dict:
            for key, child in item.items():  # type: ignore[attr-defined]
                if type(key) is not str:
                    return None
                if _known_keys.get(key) is not False and _is_sensitive(key):
                    return True
                stack.append(child)
        elif kind is list or kind is tuple:
            stack.extend(item[: _FEW + 1])  # type: ignore[index]
        elif kind is not int and kind is not float and kind is not bool and item is not None:
            return None  # a model, a dataclass …: only its JSON shows what is in it
    return False


def _suspicious(text: str) -> bool:
    """Whether a pattern may match."""
    if "@" in text:
        return True
    if "=" in text or (":" in text and ": " in text):
        low = text.lower()
        if any(word in low for word in _WORDS):
            return True
    if '"' in text and '":' in text and any(map(_is_sensitive, _keys(text))):
        return True
    # Every mark has one of these characters, which prose has seldom; only then is it worth looking for a run.
    return (
        ("-" in text or "_" in text or "I" in text or "J" in text or "B" in text)
        and len(text) >= 16
        and _KEY_RUN in text.encode("utf-8", "replace").translate(_RUNS, _FREQUENT)
        and _MARKS.search(text) is not None
    )


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return _clean(value) if _suspicious(value) else value
    if isinstance(value, list):
        return [_clean_value(item) for item in value]
    if isinstance(value, dict):
        return {
            key: _MARK if item is not None and _is_sensitive(key) else _clean_value(item) for key, item in value.items()
        }
    return value


def _clean(text: str) -> str:
    if text.startswith(("{", "[")):  # JSON in a string: tool arguments, messages
        try:
            return orjson.dumps(_clean_value(orjson.loads(text))).decode()
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            pass
    text = _EMAIL.sub("[redacted email]", _URL_PASSWORD.sub(rf"\1{_MARK}@", text))
    text = _KEYED_VALUE.sub(rf'\1"{_MARK}"', text)
    text = _ASSIGNED_VALUE.sub(lambda found: f"{found[1]}{found['quote'] or ''}{_MARK}{found['quote'] or ''}", text)
    return _SECRET.sub(_MARK, text)


def _keys(text: str) -> Iterable[str]:
    """The keys of the objects in a text that holds JSON, also JSON in a JSON string."""
    for piece in text.split('":')[:-1]:
        key = piece.rstrip("\\")
        yield key[key.rfind('"') + 1 :]


_known_keys: dict[str, bool] = {}


def _is_sensitive(key: str) -> bool:
    sensitive = _known_keys.get(key)
    if sensitive is None:
        sensitive = _KEY.search(key) is not None
        if len(_known_keys) < 4096 and len(key) < 256:
            _known_keys[key] = sensitive
    return sensitive
