"""Errors of our own are counted and told seldom; they never go further."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest

from telemetry.guard import Guard


class Clock:
    now = 5.0  # a machine that has just started

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def report(guard: Guard, where: str, error: Exception) -> None:
    try:
        raise error
    except type(error):
        guard.report(where)


def test_each_place_is_logged_once_in_20_seconds(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard()
    for now, where in ((5.0, "sink"), (5.0, "spool"), (24.9, "sink"), (25.0, "sink"), (44.9, "sink")):
        clock.now = now
        report(guard, where, ValueError("broken"))
    assert guard.counts == {"sink": 4, "spool": 1}
    assert [(record.name, record.levelname, record.message) for record in caplog.records] == [
        ("spanledger", "ERROR", "error in spanledger at sink (1 so far); the agent goes on"),
        ("spanledger", "ERROR", "error in spanledger at spool (1 so far); the agent goes on"),
        ("spanledger", "ERROR", "error in spanledger at sink (3 so far); the agent goes on"),
    ]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["broken"] * 3


class Refusing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("the host's handler is broken")


@pytest.fixture
def refusing_handler() -> Iterator[None]:
    handler, logger = Refusing(), logging.getLogger("spanledger")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.mark.usefixtures("refusing_handler")
def test_a_broken_log_handler_does_not_reach_the_agent() -> None:
    guard = Guard()
    report(guard, "on_end", ValueError("broken"))
    assert guard.counts == {"on_end": 1}


def test_no_exception_is_being_handled(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard()
    guard.report("sink")
    assert (guard.counts, len(caplog.records)) == ({"sink": 1}, 1)
