"""Waiting for what comes a little later."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from tests.app.service import Service

T = TypeVar("T")


def eventually(question: Callable[[], object], seconds: float = 30) -> None:
    """Wait until the answer is true."""
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


def becomes(wanted: T, question: Callable[[], T], seconds: float = 30) -> None:
    """Wait until the answer is the wanted one; where it stays another, say which."""
    deadline = time.monotonic() + seconds
    while (answer := question()) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    assert answer == wanted, f"not {wanted} within {seconds} s: {answer}"


def drained(service: Service) -> None:
    """Wait until every row that is in the spool now is in Postgres."""

    def empty() -> bool:
        # Not through the parser, which takes seconds for thousands of series.
        lines = httpx.get(f"{service.url}/metrics", timeout=30).text.splitlines()
        return {"spanledger_spool_bytes 0.0", "spanledger_spool_segments 0.0"} <= set(lines)

    eventually(empty)
