"""Encoding and redaction of a payload, per KB of its JSON, beside `orjson.dumps` of the same payload alone.

The budget is 3 µs per KB. Both in turns in one process, 64 payloads of each kind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from bench import payloads
from bench.figure import Figure, ratios
from bench.payloads import KILOBYTE
from telemetry import Content

ROUNDS = 41
COUNT = 64  # payloads of a kind
REPEATED = 8  # times in a round
KINDS: dict[str, Callable[[int], list[Any]]] = {
    "word text": payloads.messages,
    "text with a UUID and hyphens": payloads.texts_with_id,
    "JSON of 40 small values": payloads.nested,
    "text with secrets": payloads.with_secrets,
}


def run() -> Iterator[Figure]:
    """Every kind of payload."""
    content = Content()
    for kind, make in KINDS.items():
        given = make(COUNT) * REPEATED
        kilobytes = sum(len(orjson.dumps(payload)) for payload in given) / KILOBYTE
        sides: list[tuple[Callable[[Any], Any], list[float]]] = [(orjson.dumps, []), (content.encode, [])]
        (_, plain), (_, encoded) = sides
        for _ in range(ROUNDS):
            for encode, times in sides:
                times.append(_seconds(encode, given) / kilobytes * 1e6)
            sides.reverse()
        yield Figure(f"{kind}: encoded and redacted", "µs/KB", encoded, 3.0)
        yield Figure(f"{kind}: to orjson.dumps", "×", ratios(encoded, plain))


def _seconds(encode: Callable[[Any], Any], given: list[Any]) -> float:
    start = time.perf_counter()
    for payload in given:
        encode(payload)
    return time.perf_counter() - start
