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
    r"[sr]k[-_]|pk[-_]|gh[pousr]_|github_pat_|glpat-|xox|hf_|A[KS]IA|AIza|eyJ|earer |EARER "
)
# Keys are long runs of these characters; words are shorter.
_RUNS = bytes(
    ord("a") if chr(byte) in string.ascii_letters + string.digits + "-_." else ord(" ") for byte in range(256)
)
_KEY_RUN = b"a" * 15
_MANY = 1024  # values to look at one by one; a payload with more, or with a cycle, is looked at as text
_LONGEST_MARK = 11  # characters of a mark that may stand before the run: "github_pat_", "Bearer "


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
        return self._own(_clean(text).encode() if _suspicious([text]) else raw)

    def json(self, raw: bytes, value: object) -> bytes:
        """A JSON text without its secrets; `value` is what it was made from, quicker to look through."""
        texts: list[str] = []
        plain, sensitive = _look(value, texts)
        if not plain:
            texts, sensitive = [raw.decode("utf-8", "replace")], False
        if sensitive or _suspicious(texts):
            raw = orjson.dumps(_clean_value(orjson.loads(raw)))
        return self._own(raw) if self._extra else raw

    def _own(self, raw: bytes) -> bytes:
        for pattern in self._extra:
            raw = pattern.sub(_MARK.encode(), raw)
        return raw


def _look(value: object, texts: list[str]) -> tuple[bool, bool]:
    """Gather the strings of a payload: whether it is plain (of strings, numbers, lists and dicts), and whether a key
    has a sensitive name."""
    stack = [value]
    for item in stack:  # which grows while it is walked
        if len(stack) > _MANY:
            return False, False
        kind = type(item)
        if kind is str:
            texts.append(item)  # type: ignore[arg-type]  # kind says so, and is quicker than isinstance
        elif kind is dict:
            for key, child in item.items():  # type: ignore[attr-defined]
                if type(key) is not str:
                    return False, False
                known = _known_keys.get(key)  # nearly always, and a call costs more than the look-up
                if known or (known is None and _is_sensitive(key)):
                    return True, True
                if type(child) is str:
                    texts.append(child)
                else:
                    stack.append(child)
        elif kind is list or kind is tuple:
            stack.extend(item)  # type: ignore[arg-type]
        elif kind is not int and kind is not float and kind is not bool and item is not None:
            return False, False  # a model, a dataclass …: only its JSON shows what is in it
    return True, False


def _suspicious(texts: list[str]) -> bool:
    """Whether a pattern may match."""
    whole = texts[0] if len(texts) == 1 else "\n".join(texts)
    if "@" in whole:
        return True
    if "=" in whole or (":" in whole and ": " in whole):
        if _assigns(whole, "=") or _assigns(whole, ": "):
            return True
    if '"' in whole and '":' in whole and any(map(_is_sensitive, _keys(whole))):
        return True
    for text in texts:
        # Every mark has one of these characters, which prose has seldom; only then is it worth looking for a run.
        if ("-" in text or "_" in text or "I" in text or "J" in text or "B" in text) and _has_mark(text):
            return True
    return False


def _assigns(text: str, sign: str) -> bool:
    """Whether a sensitive name may stand before one of these signs; none is longer than what is looked at."""
    pieces = text.split(sign)
    del pieces[-1]
    low = "\n".join([piece[-18:] for piece in pieces]).lower()
    return any(word in low for word in _WORDS)


def _has_mark(text: str) -> bool:
    """Whether a long run of the characters that keys consist of begins like a key; a UUID does not."""
    runs = text.encode("latin-1", "replace").translate(_RUNS)  # a byte for each character, so that positions hold
    at = runs.find(_KEY_RUN)
    while at >= 0:
        end = runs.find(b" ", at)
        if _MARKS.search(text, max(0, at - _LONGEST_MARK), end if end >= 0 else len(text)):
            return True
        at = runs.find(_KEY_RUN, end) if end >= 0 else -1
    return "-----BEGIN" in text


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return _clean(value) if _suspicious([value]) else value
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
