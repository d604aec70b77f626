from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import StatusCode, get_current_span

from telemetry.scope import Current
from tests.telemetry.observed import Observed

SECRET = "sk-aB3dE5fG7hI9jK1lM3nO5pQ7"


# The current context


def test_current_is_undone_at_the_end() -> None:
    before = otel_context.get_current()
    with Current(Context({"a": 1})):
        assert otel_context.get_value("a") == 1
    assert otel_context.get_current() == before


@pytest.mark.usefixtures("quiet")
@pytest.mark.anyio
async def test_leaving_in_another_task_is_silent() -> None:
    current = Current(Context({"a": 1}))

    async def leave() -> None:
        current.__exit__()

    async def enter() -> None:
        current.__enter__()

    await asyncio.create_task(enter())
    await asyncio.create_task(leave())
    assert otel_context.get_value("a") is None


def test_none_changes_nothing() -> None:
    before = otel_context.get_current()
    with Current(None):
        assert otel_context.get_current() is before


def test_a_block_makes_its_span_current(observed: Observed) -> None:
    with observed.monitor.execution("a") as run:
        assert f"{get_current_span().get_span_context().span_id:016x}" == run.span_id
        with run.tool("t") as tool:
            assert f"{get_current_span().get_span_context().span_id:016x}" == tool.span_id
        assert f"{get_current_span().get_span_context().span_id:016x}" == run.span_id
    assert not get_current_span().get_span_context().is_valid


# How it ended


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), "failure"),
        (SystemExit(1), "failure"),
        (ExceptionGroup("several", [ValueError("x")]), "failure"),
        (TimeoutError(), "timeout"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
        (StopIteration("x"), "failure"),
    ],
)
def test_the_status_says_what_ended_it(observed: Observed, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)) as caught, observed.monitor.execution("a"):
        raise error
    assert caught.value is error
    row = observed.execution("a")
    cancelled = status == "cancelled"
    assert (row["status"], row["error_type"]) == (status, None if cancelled else type(error).__name__)
    expected = StatusCode.UNSET if cancelled else StatusCode.ERROR
    assert observed.spans["invoke_agent a"].status.status_code is expected


def test_the_error_on_the_span_is_redacted_everywhere(observed: Observed) -> None:
    with pytest.raises(ValueError, match="sk-"), observed.monitor.execution("a"):
        raise ValueError(f"key {SECRET} of a@example.com refused")
    span = observed.spans["invoke_agent a"]
    (event,) = span.events
    attributes: dict[str, Any] = dict(event.attributes or {})
    stack = attributes.pop("exception.stacktrace")
    message = "key [redacted] of [redacted email] refused"
    assert (event.name, attributes) == ("exception", {"exception.type": "ValueError", "exception.message": message})
    assert (span.status.description, dict(span.attributes or {})["error.type"]) == (message, "ValueError")
    assert stack.endswith(f"ValueError: {message}\n")
    assert "test_scope.py" in stack
    assert SECRET not in span.to_json()
    row = observed.execution("a")
    assert (row["error_type"], row["error_message"]) == ("ValueError", message)


def test_an_error_without_words_is_named(observed: Observed) -> None:
    with pytest.raises(KeyError), observed.monitor.execution("a"):
        raise KeyError
    assert observed.execution("a")["error_message"] == "KeyError"


# Chunks and attributes


def test_only_the_first_chunk_is_noted(observed: Observed) -> None:
    with observed.monitor.execution("a") as run, run.inference(provider="p", model="m") as call:
        call.first_chunk()
        first = dict(call._span.attributes)["gen_ai.response.time_to_first_chunk"]  # type: ignore[union-attr]
        call.first_chunk()
    span = dict(observed.spans["chat m"].attributes or {})
    assert span["gen_ai.response.time_to_first_chunk"] == first
    assert observed.steps[0]["time_to_first_chunk_ms"] == str(round(first * 1e3, 3))


def test_other_attributes_are_kept_in_the_row(observed: Observed) -> None:
    with observed.monitor.execution("a") as run:
        run.set_attribute("flag.variant", "b")
    assert observed.execution("a")["attributes"] == '{"flag.variant":"b"}'


# What hurts


def test_a_host_processor_that_raises_does_not_reach_the_agent(observed: Observed) -> None:
    class Broken(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise RuntimeError("the host's bug")

    observed.provider.add_span_processor(Broken())
    with observed.monitor.execution("a"):
        pass
    assert (observed.statuses(), observed.errors()) == ({"a": "success"}, {"monitor": 1.0})


def test_a_sampler_that_raises_does_not_reach_the_agent(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the host's bug")

    with monkeypatch.context() as patch:
        patch.setattr(type(observed.provider.sampler), "should_sample", broken)
        with observed.monitor.execution("a") as run, run.tool("t"):
            run.output = 1
    assert (observed.executions, observed.errors(), run.span_id) == ([], {"monitor": 2.0}, "0" * 16)
