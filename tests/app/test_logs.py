from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from opentelemetry import trace

from app import logs
from telemetry import bind

SPAN = trace.NonRecordingSpan(
    trace.SpanContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, is_remote=False)
)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was logged, without the time."""
    decoded = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in decoded]


def test_a_record_is_one_line_with_utc_milliseconds() -> None:
    record = logging.LogRecord("app.x", logging.WARNING, __file__, 1, "two\nlines %d", (7,), None)
    record.created = 1795444496.1239
    assert logs.JsonLines().format(record) == (
        '{"time":"2026-11-23T14:34:56.123Z","level":"warning","logger":"app.x","message":"two\\nlines 7"}'
    )


def test_half_a_surrogate_pair_does_not_lose_the_line() -> None:
    record = logging.LogRecord("app.x", logging.INFO, __file__, 1, "half \ud800", (), None)
    assert json.loads(logs.JsonLines().format(record))["message"] == "half ?"


def test_the_current_span_and_request_are_on_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.install("info")
    with trace.use_span(SPAN), bind(request_id="r-1"):
        logging.getLogger("app.x").info("here")
    assert lines(capsys) == [
        {
            "level": "info",
            "logger": "app.x",
            "message": "here",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "span_id": "00f067aa0ba902b7",
            "request_id": "r-1",
        }
    ]


def test_an_exception_is_on_the_same_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.install("info")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("app.x").exception("failed")
    (line,) = lines(capsys)
    exception = line.pop("exception")
    assert line == {"level": "error", "logger": "app.x", "message": "failed"}
    assert exception.startswith("Traceback (most recent call last):\n")
    assert exception.endswith("ValueError: boom")


@pytest.mark.parametrize(
    ("message", "written"),
    [
        ("mail to ann@example.org", "mail to [redacted email]"),
        ("GET /?admin_token=0123456789abcdef", "GET /?admin_token=[redacted]"),
        ("key sk-0123456789abcdefghij", "key [redacted]"),
        ("postgresql://u:hunter2@db/x", "postgresql://u:[redacted]@db/x"),
        ("case ACC-1234", "case [redacted]"),
    ],
)
def test_secrets_never_reach_the_line(message: str, written: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.install("info", [r"\bACC-\d+"])
    logging.getLogger("app.x").info("%s", message)
    assert lines(capsys) == [{"level": "info", "logger": "app.x", "message": written}]


def test_uvicorns_own_handlers_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    from uvicorn.config import LOGGING_CONFIG

    logging.config.dictConfig(LOGGING_CONFIG)
    logs.install("info")
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/", "1.1", 200)
    logging.getLogger("uvicorn.error").info("started")
    assert lines(capsys) == [
        {"level": "info", "logger": "uvicorn.access", "message": '127.0.0.1:1 - "GET / HTTP/1.1" 200'},
        {"level": "info", "logger": "uvicorn.error", "message": "started"},
    ]


def test_the_level_and_a_second_installation(capsys: pytest.CaptureFixture[str]) -> None:
    logs.install("debug")
    logs.install("warning")
    logging.getLogger("app.x").info("quiet")
    logging.getLogger("app.x").warning("once")
    assert lines(capsys) == [{"level": "warning", "logger": "app.x", "message": "once"}]
