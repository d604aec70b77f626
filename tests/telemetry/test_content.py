"""Whatever an agent takes or gives becomes valid JSON of bounded size, without secrets and e-mail addresses."""

from __future__ import annotations

import dataclasses
import enum
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.content import Content

MAX = 8192
content = Content()


def encoded(value: object) -> Any:
    raw = content.encode(value)
    assert raw is not None
    assert len(raw) <= MAX
    return orjson.loads(raw)


# Any value


@dataclasses.dataclass
class Card:
    front: str
    tags: set[str]


class Answer(pydantic.BaseModel):
    text: str
    score: float
    at: datetime


class Colour(enum.Enum):
    RED = "red"


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Pretender:
    """Has every attribute, and each is a function that gives another like it, as mocks have."""

    def __getattr__(self, name: str) -> Any:
        return lambda **_: Pretender()

    def __str__(self) -> str:
        return "pretender"


class Angry:
    def model_dump(self, **_: object) -> object:
        raise ValueError("not today")

    def __str__(self) -> str:
        return "angry"


def words() -> Iterator[str]:
    yield "never taken"


MOMENT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text \n\t\"' 🦉", "text \n\t\"' 🦉"),
        ("", ""),
        ({}, {}),
        (0, 0),
        (False, False),
        ([1, 2.5, None, True], [1, 2.5, None, True]),
        ((1, (2,)), [1, [2]]),
        (
            {7: "int", None: "none", 2.5: "float", True: "bool"},
            {"7": "int", "null": "none", "2.5": "float", "true": "bool"},
        ),
        ([float("nan"), float("inf"), -float("inf")], [None, None, None]),
        (2**64 - 1, 2**64 - 1),
        ({"n": 2**70, "m": -(2**70), "x": 1.5}, {"n": str(2**70), "m": str(-(2**70)), "x": 1.5}),
        ([2**70, float("nan"), float("inf")], [str(2**70), None, None]),
        ({(1, 2): "dropped", "kept": 2**70}, {"kept": str(2**70)}),
        ({3}, [3]),
        (frozenset("a"), ["a"]),
        (b"bytes \xff", "bytes \ufffd"),
        (bytearray(b"a"), "a"),
        (memoryview(b"a"), "a"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (MOMENT, "2026-11-23T12:00:00Z"),
        (Colour.RED, "red"),
        (Card("a", {"b"}), {"front": "a", "tags": ["b"]}),
        ([Answer(text="a", score=0.5, at=MOMENT)], [{"text": "a", "score": 0.5, "at": "2026-11-23T12:00:00Z"}]),
        (1 + 2j, "(1+2j)"),
        (Broken(), "<Broken>"),
        (Pretender(), "pretender"),
        (Angry(), "angry"),
        (Card, str(Card)),
        (Answer, str(Answer)),
        ("lone \ud83e surrogate", "lone ? surrogate"),
        ({"\udd89": ["\udd89"]}, {"?": ["?"]}),
        ("nul \0 here", "nul \ufffd here"),
        ({"\0": "\0"}, {"\ufffd": "\ufffd"}),
        ("no nul: \\u0000", "no nul: \\u0000"),
        ("a backslash and nul: \\\0", "a backslash and nul: \\\ufffd"),
    ],
)
def test_any_kind_of_value(value: object, expected: object) -> None:
    assert encoded(value) == expected


def test_none_is_no_payload() -> None:
    assert content.encode(None) is None


def test_a_cycle_is_told_by_its_text() -> None:
    cycle: list[object] = [1]
    cycle.append(cycle)
    assert encoded(cycle) == "[1, [...]]"


def test_deep_nesting() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert isinstance(encoded(deep), str | dict)


def test_a_generator_is_not_consumed() -> None:
    generator = words()
    assert encoded(generator).startswith("<generator object words")
    assert list(generator) == ["never taken"]


def test_json_text_is_taken_as_json() -> None:
    taken = {
        '{"b": 1,\n "a": [null]}': b'{"b":1,"a":[null]}',
        "null": b"null",
        '"text"': b'"text"',
        "just text": b'"just text"',
        "": b'""',
        '{"a": NaN}': b'"{\\"a\\": NaN}"',
        "\ud83e": b'"?"',
    }
    assert {text: content.encode_json(text) for text in taken} == taken


# Secrets. None is real; they are put together here so that no scanner takes this file for a leak.

LETTERS = "aB3dE5gH7jK9mN1pQ4rS6tU8vW0xY2zA4bC6dE8fG1hJ3kL5"
SECRETS = {
    "openai": "sk-" + "proj-" + LETTERS,
    "anthropic": "sk-" + "ant-api03-" + LETTERS,
    "stripe": "sk_" + "live_" + LETTERS[:24],
    "github": "ghp" + "_" + LETTERS[:36],
    "github_fine": "github" + "_pat_" + LETTERS[:40],
    "gitlab": "glpat" + "-" + "a1B2c3D4e5F6g7H8i9J0",
    "slack": "xoxb" + "-123456789012-1234567890123-" + LETTERS[:24],
    "hugging_face": "hf" + "_" + LETTERS[:34],
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "google": "AIza" + LETTERS[:35],
    "jwt": "eyJ" + "hbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0." + LETTERS[:43],
    "bearer": "Bearer " + LETTERS[:30],
    "private_key": "-----BEGIN " + "RSA PRIVATE KEY-----\n" + f"{LETTERS}\n" * 3 + "-----END RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("shape", ["{}", "use {} now", "({})", "key={}", "x {}, y", "last: {}."])
def test_secrets_in_text(kind: str, shape: str) -> None:
    secret = SECRETS[kind]
    for value in (shape.format(secret), {"a": [shape.format(secret)]}, orjson.dumps([shape.format(secret)]).decode()):
        found = orjson.dumps(encoded(value)).decode()
        assert "[redacted]" in found
        assert LETTERS[:12] not in found
        assert secret not in found
    told = content.text(shape.format(secret))
    assert ("[redacted]" in told, secret in told) == (True, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ask bob.o'hara+x@mail.example.co.uk now", "ask bob.o'[redacted email] now"),
        ("<a@b.de>,c@d.fr", "<[redacted email]>,[redacted email]"),
        ("postgres://ann:p4ss:w@db.internal:5432/x", "postgres://ann:[redacted]@db.internal:5432/x"),
        ("https://:pw@h/", "https://:[redacted]@h/"),
        ("password=hunter2; user=ann", "password=[redacted]; user=ann"),
        ("OPENAI_API_KEY=abcdef DEBUG=1", "OPENAI_API_KEY=[redacted] DEBUG=1"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: [redacted]"),
        ("my password: hunter2", "my password: [redacted]"),
        ("/callback?access_token=abc123&next=/", "/callback?access_token=[redacted]&next=/"),
        ('curl -d \'{"client_secret":"abc"}\'', 'curl -d \'{"client_secret":"[redacted]"}\''),
    ],
)
def test_assignments_addresses_and_urls(text: str, expected: str) -> None:
    assert encoded(text) == expected
    assert encoded({"a": [text]}) == {"a": [expected]}
    assert content.text(text) == expected


NAMES = [
    *("password", "Passwd", "db_password", "passphrase", "pwd", "secret", "client_secret", "clientSecret", "token"),
    *("access_token", "refreshToken", "api_key", "apiKey", "x-api-key", "apikey", "AWS_SECRET_ACCESS_KEY"),
    *("private_key", "signing-key", "Authorization", "proxy-authorization", "credential", "credentials"),
    *("cookie", "Set-Cookie", "session_key"),
]


@pytest.mark.parametrize("name", NAMES)
def test_values_under_sensitive_names(name: str) -> None:
    hidden = {name: "[redacted]", "other": "kept"}
    value = {name: "correct horse, battery: \u00fc 🐎 \n", "other": "kept"}
    assert encoded(value) == hidden
    assert encoded([1, {"deep": {"er": [value]}}]) == [1, {"deep": {"er": [hidden]}}]
    as_text = orjson.dumps(value).decode()
    assert orjson.loads(encoded(as_text)) == hidden
    assert orjson.loads(encoded({"arguments": as_text})["arguments"]) == hidden
    assert orjson.loads(content.encode_json(as_text) or b"") == hidden
    spaced = f'{{"{name}": "correct horse"}}'
    assert encoded(f"say {spaced}!") == f'say {{"{name}": "[redacted]"}}!'
    many = {f"key {number}": number for number in range(50)}
    assert encoded(many | value) == many | hidden
    assert encoded(Card(front=as_text, tags=set()))["front"] == encoded(as_text)


ORDINARY = [
    {"max_tokens": 500, "token_count": "12", "tokens": "many", "total_tokens": [1], "tokenizer": "cl100k"},
    {"key": "value", "keys": ["a"], "key_points": "first", "monkey": "see", "author": "Ann", "secretary": "Bob"},
    "The key points: tokens are counted; max_tokens=500, temperature=0.2, token_count: 7, tokens: 12",
    "id 123e4567-e89b-12d3-a456-426614174000, trace 0af7651916cd43dd8448eb211c80319c, 2026-11-23T12:00:00Z",
    "e-mail me @home or @ 5 o'clock; a@b is no address, nor is x@ y.de",
    "task-force, risk-averse, disk_usage, sk-learn, ask-me-anything-about-anything, eyJust, AKIArchive",
    "The passwords were changed. A secret agent met a bearer of news at http://example.com:8080/path?a=b#c",
    "naïve café — “quotes”, ещё, 漢字, emoji 🦉; C:\\new\\table; 50 % off; f(x) = y; {a: b}",
]


@pytest.mark.parametrize("value", ORDINARY)
def test_ordinary_content_stays(value: object) -> None:
    assert encoded(value) == value
    assert encoded([value] * 20) == [value] * 20
    if isinstance(value, str):
        assert content.text(value) == value


def test_an_address_at_the_beginning_of_a_line() -> None:
    assert encoded("to:\nbob@example.com") == "to:\n[redacted email]"


@pytest.mark.parametrize("kind", ["openai", "github", "gitlab", "slack", "aws", "google", "jwt"])
def test_a_secret_at_the_beginning_of_a_line(kind: str) -> None:
    assert encoded("here:\n" + SECRETS[kind]) == "here:\n[redacted]"


def test_a_private_key_without_its_end() -> None:
    begin = SECRETS["private_key"][:80]
    assert encoded({"a": begin, "b": "kept"}) == {"a": "[redacted]", "b": "kept"}


def test_a_password_with_a_quote() -> None:
    assert encoded({"password": 'hunter"2"and more'}) == {"password": "[redacted]"}


def test_a_password_in_json_in_json_in_json() -> None:
    inner = orjson.dumps({"password": "hunter2"}).decode()
    outer = orjson.dumps({"arguments": inner}).decode()
    arguments = orjson.loads(encoded({"body": outer})["body"])["arguments"]
    assert orjson.loads(arguments) == {"password": "[redacted]"}


@pytest.mark.parametrize("value", [12345678, ["hunter2"], {"value": "hunter2"}])
def test_a_password_that_is_no_string(value: object) -> None:
    assert encoded({"password": value, "other": "kept"}) == {"password": "[redacted]", "other": "kept"}


@pytest.mark.parametrize("text", ["User(password='hunter2')", 'password = "hunter2"', "{'password': 'hunter2'}"])
def test_an_assignment_with_quotes(text: str) -> None:
    assert "hunter2" not in encoded(text)


def test_a_short_key_with_a_dash_in_it() -> None:
    secret = "glpat" + "-" + "aB3dE5gH-7jK9mN1_pQ4"
    assert encoded(f"use {secret}") == "use [redacted]"


# Patterns of one's own


def test_patterns_of_ones_own() -> None:
    own = Content(redact=[r"\bACC-\d+\b", r"(?i)project \w+"])
    assert own.encode({"a": "ACC-12 of Project Owl"}) == b'{"a":"[redacted] of [redacted]"}'
    assert own.encode(["a@b.de", Card("ACC-1", set())]) == b'["[redacted email]",{"front":"[redacted]","tags":[]}]'
    assert own.text("ACC-12, password=abc") == "[redacted], password=[redacted]"


def test_a_pattern_that_takes_quotes_with_it_leaves_valid_json() -> None:
    own = Content(redact=[r'"ssn":\s*"[^"]*"'])
    assert own.encode({"ssn": "123", "b": 1}) == orjson.dumps('{[redacted],"b":1}')
    large = own.encode({"ssn": "123", "b": "x " * 5000})
    assert large is not None
    assert (orjson.loads(large)[:20], len(large) <= MAX) == ('{[redacted],"b":"x x', True)


def test_a_bad_pattern_is_an_error_at_once() -> None:
    with pytest.raises(re.error):
        Content(redact=["("])


# Size


def test_a_long_string_is_cut_between_words() -> None:
    value = "longer " * 3000
    cut = encoded(value)
    kept, mark = cut.split("… ")
    assert set(kept.split(" ")) == {"longer"}
    assert len(kept) > MAX // 2
    assert mark == f"[{len(value) - len(kept)} more characters]"


def test_long_containers_are_cut_and_say_so() -> None:
    cut = encoded({"items": list(range(5000)), "name": "kept?"})
    assert cut["items"][:3] == [0, 1, 2]
    assert cut["items"][-1] == f"… [{5000 - (len(cut['items']) - 1)} more items]"
    assert cut["…"] == "[1 more keys]"
    many = encoded({f"key {number}": number for number in range(2000)})
    assert (many["key 0"], many["…"]) == (0, f"[{2000 - (len(many) - 1)} more keys]")


def test_a_huge_payload_is_told_by_its_beginning() -> None:
    raw = orjson.dumps({"text": "word " * 100_000})
    assert encoded({"text": "word " * 100_000}) == {
        "truncated": f"{len(raw)} bytes",
        "head": raw[: MAX // 2].decode(),
    }


@pytest.mark.parametrize("length", [20_000, 100_000])
def test_a_cut_never_shows_half_a_secret(length: int) -> None:
    for value in (
        {"password": "hunter2 " * (length // 8)},
        "x " * 2000 + SECRETS["openai"] + " y" * length,
        ["a@b.de " * (length // 7)],
        [SECRETS["private_key"]] * (length // 200),
    ):
        cut = orjson.dumps(encoded(value)).decode()
        assert [part for part in ("hunter2", LETTERS[:8], "a@b.de") if part in cut] == []
        assert "[redacted" in cut


def test_a_text_is_bounded() -> None:
    small = Content(max_bytes=100)
    assert small.text("x" * 100) == "x" * 100
    assert small.text("x" * 101) == "x" * 100 + "… [101 characters]"
    assert small.text("x" * 100_000) == "x" * 100 + "… [100000 characters]"
    assert small.text("é" * 60 + "a") == "é" * 50 + "… [61 characters]"
    assert small.text("a" + "é" * 60) == "a" + "é" * 49 + "… [61 characters]"
    assert small.text("nul \0 and \ud83e half a pair") == "nul \ufffd and ? half a pair"


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.complex_numbers()
    | st.datetimes()
    | st.uuids()
    | st.sampled_from(['"password":', "a@b.de", '\\"token\\":\\"x\\"', "\n\\u0000", "key=sk-" + LETTERS, "\0" * 300])
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(scalars.filter(lambda key: not isinstance(key, float) or key == key), inner)
        | st.builds(Card, inner, inner)
        | st.sets(scalars)
    ),
    max_leaves=40,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(anything, st.integers(64, 2000))
def test_anything_becomes_valid_json_of_bounded_size(value: object, max_bytes: int) -> None:
    bounded = Content(max_bytes)
    raw = bounded.encode(value)
    if value is None:
        assert raw is None
        return
    assert raw is not None
    assert len(raw) <= max_bytes
    orjson.loads(raw)
    assert not {*b"\t\n\r\0"} & {*raw}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.characters(), max_size=400), st.integers(64, 300))
def test_any_text_is_bounded(text: str, max_bytes: int) -> None:
    told = Content(max_bytes).text(text)
    assert len(told.encode()) <= max_bytes + 64
    assert "\0" not in told
