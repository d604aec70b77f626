"""Scope: a span as a `with` block that can never hurt what runs inside it."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable
from contextvars import Token
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)

from . import semconv
from .content import Content
from .guard import Guard
from .runs import OpenSpan, OpenSpans
from .semconv import Status
from .spool import Spool

_CANCELLATIONS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)


@dataclass(frozen=True, slots=True)  # a named tuple's fields are slower to read
class Runtime:
    """What a configured process gives its monitors.

    `unsampled` records spans the host's sampler drops: they are counted and stored, never exported.
    """

    tracer: Tracer
    unsampled: Tracer
    spans: OpenSpans
    content: Content
    capture_content: bool
    guard: Guard
    know_agent: Callable[[str], object]
    spool: Spool


def _detach(token: Token[Context] | None) -> None:
    """Undo an attach. From another task than the one that attached (a stream's finaliser) there is nothing to undo;
    OpenTelemetry's own `detach` logs an error there."""
    if token is not None:
        try:  # on the path of every call, where suppress() costs a microsecond
            token.var.reset(token)
        except ValueError:
            pass


class Current:
    """Makes a context the current one for a `with` block."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context | None) -> None:
        self._context = context
        self._token: Token[Context] | None = None

    def __enter__(self) -> None:
        if self._context is not None:
            self._token = otel_context.attach(self._context)

    def __exit__(self, *_: object) -> None:
        _detach(self._token)


class Scope:
    """An open span. Exceptions pass through unchanged; errors of our own are counted and stay inside."""

    def __init__(self, runtime: Runtime | None, name: str, kind: SpanKind, attributes: dict[str, Any]) -> None:
        self._runtime = runtime
        self._name = name
        self._kind = kind
        self._attributes = attributes
        self._within: Context | None = None
        self._span: Span | None = None
        self._context: Context | None = None
        self._opened: OpenSpan | None = None
        self._token: Token[Context] | None = None
        self._started = 0
        self._chunked = False

    @property
    def trace_id(self) -> str:
        """32 hex digits; zeros when nothing is configured."""
        return format_trace_id(self._span.get_span_context().trace_id) if self._span else "0" * 32

    @property
    def span_id(self) -> str:
        """16 hex digits; zeros when nothing is configured."""
        return format_span_id(self._span.get_span_context().span_id) if self._span else "0" * 16

    def set_attribute(self, name: str, value: Any) -> None:
        """Set a span attribute; those without a column of their own are stored in `attributes`."""
        if self._span is not None:
            self._span.set_attribute(name, value)

    def first_chunk(self) -> None:
        """Note that the first chunk of a stream is there; later calls change nothing."""
        if self._span is not None and not self._chunked:
            self._chunked = True
            self._span.set_attribute(semconv.TIME_TO_FIRST_CHUNK, (time.time_ns() - self._started) / 1e9)

    def within(self, context: Context | None) -> None:
        """Start under this context instead of the current one."""
        self._within = context

    def current(self) -> Current:
        """A `with` block in which the span is the current one."""
        return Current(self._context)

    def __enter__(self) -> Self:
        self.open()
        if self._context is not None:
            self._token = otel_context.attach(self._context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _detach(self._token)
        self.close(error)

    def open(self) -> None:
        """Start the span, without making it the current one."""
        runtime = self._runtime
        if runtime is None:
            return
        try:
            self._started = time.time_ns()
            arguments = (self._name, self._within, self._kind, self._attributes, (), self._started)
            span = runtime.tracer.start_span(*arguments)
            context = span.get_span_context()
            opened = runtime.spans.get(context)
            if (opened is None or opened.operation is None) and not context.trace_flags.sampled:
                span.end()  # dropped, or recorded without its attributes, as the SDK's AlwaysRecordSampler does it
                span = runtime.unsampled.start_span(*arguments)
                opened = runtime.spans.get(span.get_span_context())
            self._span = span
            self._context = set_span_in_context(span, self._within)
            self._opened = opened
            self._begin(runtime)
        except Exception:
            runtime.guard.report("monitor")

    def close(self, error: BaseException | None = None) -> None:
        """End the span; `error` is what ended the block."""
        runtime, span = self._runtime, self._span
        if runtime is None or span is None:
            return
        if error is not None:
            self._guarded(runtime, self._fail, runtime, span, error)
        try:  # what `_guarded` does, without its call
            self._finish(runtime, span)
        except Exception:
            runtime.guard.report("monitor")
        try:
            span.end()  # the host's own span processors run in it too
        except Exception:
            runtime.guard.report("monitor")

    @staticmethod
    def _guarded(runtime: Runtime, part: Callable[..., None], *arguments: Any) -> None:
        try:
            part(*arguments)
        except Exception:
            runtime.guard.report("monitor")

    def _begin(self, runtime: Runtime) -> None:
        """What is to be noted once the span has started."""

    def _finish(self, runtime: Runtime, span: Span) -> None:
        """What is to be noted before the span ends."""

    def _fail(self, runtime: Runtime, span: Span, error: BaseException) -> None:
        if isinstance(error, _CANCELLATIONS):
            span.set_attribute(semconv.STATUS, Status.CANCELLED.value)
            return
        name = type(error).__qualname__
        span.set_attribute(semconv.ERROR_TYPE, name)  # before the error's own `__str__` runs: it may raise
        span.set_status(StatusCode.ERROR, name)
        if isinstance(error, TimeoutError):
            span.set_attribute(semconv.STATUS, Status.TIMEOUT.value)
        redact = runtime.content.text
        message = redact(str(error)) or name
        span.set_status(StatusCode.ERROR, message)
        stack = redact("".join(traceback.format_exception(error)))
        span.add_event(
            "exception",
            {"exception.type": name, "exception.message": message, "exception.stacktrace": stack},
        )
