"""Logs: one JSON line per record on stderr, with trace and request ids, redacted."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable

from opentelemetry import trace

from telemetry import Content, bind

NOISY = (
    "httpx",
    "alembic.runtime.plugins",
)
"""Loggers heard from `warning` on only."""
LINE_BYTES = 1 << 16
"""A longer line is shortened, and stays JSON."""
UVICORN = ("uvicorn", "uvicorn.access", "uvicorn.error")


class JsonLines(logging.Handler):
    """Writes each record as one line of JSON to stderr; secrets and e-mail addresses are removed from it."""

    def __init__(self, redact: Iterable[str] = ()) -> None:
        super().__init__()
        self._content = Content(LINE_BYTES, redact)
        self._tracebacks = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        seconds, milliseconds = divmod(int(record.created * 1000), 1000)
        line: dict[str, str] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{milliseconds:03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = trace.format_trace_id(span.trace_id)
            line["span_id"] = trace.format_span_id(span.span_id)
        with bind() as caller:
            if caller.request_id is not None:
                line["request_id"] = caller.request_id
        if record.exc_info:
            line["exception"] = self._tracebacks.formatException(record.exc_info)
        return (self._content.encode(line) or b"").decode()


def install(level: str, redact: Iterable[str] = ()) -> None:
    """Send every record of `level` and above through `JsonLines`, uvicorn's too; again replaces it.

    Handlers of others on the root logger stay.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, JsonLines)]:
        root.removeHandler(handler)
    root.addHandler(JsonLines(redact))
    root.setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in UVICORN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
