"""What agents are given and give back in the benchmarks: made from a fixed seed, 1 KB of JSON each."""

from __future__ import annotations

import random
import uuid
from typing import Any

import orjson

KILOBYTE = 1024
WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were all her she there would their we him been has when who will no more if out so up said "
    "what its about than into them can only other time new some could these two may first then do any like my "
    "now over such our man me even most made after also did many off before must well back through years much "
    "where your way down should because long each just state those people too mister how little good world "
    "make very year still see own work men day get here old life both between being under three never know "
    "same last another while us might great go come since against right came take used himself few house use "
    "place during high without again home around small however"
).split()


def messages(count: int) -> list[dict[str, str]]:
    """Word text and an id, as most agents are asked and answer."""
    return [_filled({"message": "", "id": _id(dice)}, "message", dice) for dice in _dice(count)]


def texts_with_id(count: int) -> list[dict[str, str]]:
    """Text with hyphenated words and a UUID in the midst of it."""
    made = []
    for dice in _dice(count):
        text = f"the well-known, up-to-date document {uuid.UUID(int=dice.getrandbits(128), version=4)} says: "
        made.append(_filled({"message": text}, "message", dice))
    return made


def nested(count: int) -> list[dict[str, Any]]:
    """Forty small values: ten cards of a question, an answer, a number and a truth."""
    return [
        {"cards": [{"question": _text(dice, 5), "answer": _text(dice, 7), "level": 2, "known": False}] * 10}
        for dice in _dice(count)
    ]


def with_secrets(count: int) -> list[dict[str, str]]:
    """Text with a key, an assigned password and an e-mail address in it."""
    made = []
    for dice in _dice(count):
        key = "".join(dice.choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=40))
        text = f"call it with sk-proj-{key}, password=hunter{dice.randrange(100)}, ask ada@example.com. "
        made.append(_filled({"message": text}, "message", dice))
    return made


def _dice(count: int) -> list[random.Random]:
    return [random.Random(seed) for seed in range(count)]


def _id(dice: random.Random) -> str:
    return f"{dice.getrandbits(64):016x}"


def _text(dice: random.Random, words: int) -> str:
    return " ".join(dice.choices(WORDS, k=words))


def _filled(payload: dict[str, str], key: str, dice: random.Random) -> dict[str, str]:
    """The payload with words added at `key` until its JSON has one kilobyte."""
    missing = KILOBYTE - len(orjson.dumps(payload))
    return {**payload, key: payload[key] + _text(dice, missing)[:missing]}
