from __future__ import annotations

import json
import time
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import Status as SpanStatus
from opentelemetry.trace import StatusCode, set_span_in_context

from telemetry.execution import Service
from tests.telemetry.observed import Observed

AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
NASTY = 'tab\t newline\n return\r backslash\\ quote" nul\0 \\N é 漢'


def microseconds(nanoseconds: int) -> str:
    moment = datetime.fromtimestamp(nanoseconds // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{moment}.{nanoseconds % 10**9 // 1000:06d}+00"


def test_the_rows_as_a_whole(observed: Observed) -> None:
    start = time.time_ns() // 10**9 * 10**9 + 123_456_789  # floored to microseconds, not rounded
    agent = observed.tracer.start_span(
        "invoke_agent cards",
        start_time=start,
        attributes={
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "cards",
            "gen_ai.agent.version": "2",
            "user.id": "u",
            "session.id": "s",
            "spanledger.request.id": "r",
            "gen_ai.input.messages": '[{"role":"user"}]',
            "gen_ai.output.messages": "no JSON",
            "tag": ("x", "y"),
        },
    )
    call = observed.tracer.start_span(
        "chat gpt-x",
        set_span_in_context(agent),
        start_time=start + 1_000_000,
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-x",
            "gen_ai.response.model": "gpt-x-1",
            "gen_ai.response.time_to_first_chunk": 0.0125,
            "gen_ai.usage.input_tokens": 900,
            "gen_ai.usage.cache_read.input_tokens": 400,
            "gen_ai.usage.cache_write.input_tokens": 100,
            "gen_ai.usage.output_tokens": 120,
            "gen_ai.usage.reasoning.output_tokens": 20,
            "gen_ai.usage.cost": 0.25,
        },
    )
    call.end(start + 501_000_000)
    agent.set_status(SpanStatus(StatusCode.ERROR, "refused by a@example.com"))
    agent.set_attribute("error.type", "RateLimitError")
    agent.end(start + 1_500_000_000)
    shared = {
        "late": "f",
        "trace_id": f"{1:032x}",
        "user_id": "u",
        "session_id": "s",
        "request_id": "r",
        "service_name": "tutor",
        "service_namespace": "school",
        "service_version": "1.2",
        "environment": "test",
        "instance_id": "i-1",
        "agent_name": "cards",
        "provider": "openai",
        "input_tokens": "900",
        "cache_read_tokens": "400",
        "cache_write_tokens": "100",
        "output_tokens": "120",
        "reasoning_tokens": "20",
        "cost_usd": "0.25",
        "cost_source": "provider",
    }
    (execution,), (step,) = observed.executions, observed.steps
    for row, column in ((execution, "execution_time_ms"), (step, "duration_ms"), (step, "time_to_first_chunk_ms")):
        row[column] = str(float(row[column] or "nan"))  # however many zeros
    assert [execution] == [
        {
            **shared,
            "span_id": f"{1:016x}",
            "parent_span_id": None,
            "parent_agent_span_id": None,
            "started_at": microseconds(start),
            "created_at": microseconds(start + 1_500_000_000),
            "is_root": "t",
            "status": "failure",
            "agent_version": "2",
            "execution_time_ms": "1500.0",
            "time_to_first_chunk_ms": None,
            "tokens_used": "1020",
            "tokens_total": "1020",
            "model_used": "gpt-x",
            "cost_total_usd": "0.25",
            "error_type": "RateLimitError",
            "error_message": "refused by [redacted email]",
            "attributes": '{"tag":["x","y"]}',
            "input_data": '[{"role":"user"}]',
            "output_data": '"no JSON"',
        }
    ]
    assert [step] == [
        {
            **shared,
            "span_id": f"{2:016x}",
            "parent_span_id": f"{1:016x}",
            "agent_span_id": f"{1:016x}",
            "started_at": microseconds(start + 1_000_000),
            "created_at": microseconds(start + 501_000_000),
            "operation": "chat",
            "status": "success",
            "duration_ms": "500.0",
            "time_to_first_chunk_ms": "12.5",
            "tool_name": None,
            "request_model": "gpt-x",
            "response_model": "gpt-x-1",
            "error_type": None,
            "error_message": None,
            "attributes": "{}",
            "input_data": None,
            "output_data": None,
        }
    ]


@pytest.mark.parametrize(
    ("attributes", "code", "status", "error_type"),
    [
        ({}, StatusCode.UNSET, "success", None),
        ({}, StatusCode.OK, "success", None),
        ({}, StatusCode.ERROR, "failure", "_OTHER"),
        ({"error.type": "ValueError"}, StatusCode.UNSET, "failure", "ValueError"),
        ({"error.type": "500"}, StatusCode.ERROR, "failure", "500"),
        ({"error.type": "timeout"}, StatusCode.ERROR, "timeout", "timeout"),
        ({"error.type": "openai.APITimeoutError"}, StatusCode.ERROR, "timeout", "openai.APITimeoutError"),
        ({"error.type": "asyncio.TimeoutError"}, StatusCode.ERROR, "timeout", "asyncio.TimeoutError"),
        (
            {"error.type": "asyncio.exceptions.CancelledError"},
            StatusCode.ERROR,
            "cancelled",
            "asyncio.exceptions.CancelledError",
        ),
        ({"spanledger.execution.status": "cancelled"}, StatusCode.UNSET, "cancelled", None),
        ({"spanledger.execution.status": "crashed", "error.type": "x"}, StatusCode.ERROR, "crashed", "x"),
        ({"spanledger.execution.status": "splendid"}, StatusCode.UNSET, "success", None),
    ],
)
def test_the_status_of_a_foreign_span(
    observed: Observed, attributes: dict[str, Any], code: StatusCode, status: str, error_type: str | None
) -> None:
    with observed.tracer.start_as_current_span("a", attributes=AGENT | attributes) as span:
        if code is not StatusCode.UNSET:
            span.set_status(code)
    row = observed.execution("a")
    assert (row["status"], row["error_type"]) == (status, error_type)


def test_a_foreign_exception_is_read_from_its_event(observed: Observed) -> None:
    with pytest.raises(ValueError, match="secret"), observed.tracer.start_as_current_span("a", attributes=AGENT):
        raise ValueError("password=secret9 refused")
    row = observed.execution("a")
    assert (row["status"], row["error_type"]) == ("failure", "ValueError")
    assert "secret9" not in (row["error_message"] or "")
    assert "refused" in (row["error_message"] or "")


def test_an_exception_that_was_handled_is_no_failure(observed: Observed) -> None:
    with observed.tracer.start_as_current_span("a", attributes=AGENT) as span:
        span.record_exception(ValueError("tried again"))
    row = observed.execution("a")
    assert (row["status"], row["error_type"], row["error_message"]) == ("success", None, None)


def test_nasty_text_is_stored_as_it_is(observed: Observed) -> None:
    with observed.monitor.execution(NASTY, user_id=NASTY, input=NASTY) as run:
        run.set_attribute(NASTY, NASTY)
    (row,) = observed.executions
    clean = NASTY.replace("\0", "\ufffd")
    assert (row["agent_name"], row["user_id"], json.loads(row["input_data"] or "")) == (clean, clean, clean)
    assert json.loads(row["attributes"] or "") == {clean: clean}


def test_a_clock_that_is_set_back_meanwhile_makes_no_negative_duration(observed: Observed) -> None:
    start = time.time_ns() + 1_800_000_000_000
    for attributes in (AGENT, {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}):
        observed.tracer.start_span("a", start_time=start, attributes=attributes).end()
    for row in (*observed.executions, *observed.steps):
        assert row["started_at"] == row["created_at"]
        assert row.get("execution_time_ms", "0.000000") == row.get("duration_ms", "0.000000") == "0.000000"
    samples = [sample for family in observed.registry.collect() for sample in family.samples]
    sums = [sample.value for sample in samples if sample.name == "gen_ai_invoke_agent_duration_seconds_sum"]
    assert sums == [0, 0]  # of the agent, and of the call that belongs to none


def test_a_name_that_is_no_text_is_stored_as_text(observed: Observed) -> None:
    with observed.tracer.start_as_current_span("a", attributes=AGENT | {"gen_ai.agent.name": 7}):
        pass
    assert [row["agent_name"] for row in observed.executions] == ["7"]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, Service("unknown_service", None, None, None, None)),
        ({"service.name": ""}, Service("unknown_service", None, None, None, None)),
        ({"service.name": "s", "deployment.environment": "old"}, Service("s", None, None, "old", None)),
        (
            {"service.name": "s", "deployment.environment": "old", "deployment.environment.name": "new"},
            Service("s", None, None, "new", None),
        ),
        ({"service.name": "s", "service.version": 3, "service.instance.id": "i"}, Service("s", None, "3", None, "i")),
    ],
)
def test_the_service_of_a_resource(attributes: dict[str, Any], expected: Service) -> None:
    service = Service.from_resource(Resource(attributes))
    assert service == expected
    assert service.columns == tuple(getattr(expected, field.name) for field in fields(Service)[:5])
