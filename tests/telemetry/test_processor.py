from __future__ import annotations

import json
import math
import time
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from telemetry import Prices
from telemetry.metrics import Metrics
from telemetry.processor import DROP_REASONS
from telemetry.spool import Spool, SpoolError
from tests.telemetry.conftest import Observe
from tests.telemetry.observed import Observed

AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o"}
DAY = 24 * 3600 * 10**9


def call(observed: Observed, **attributes: Any) -> None:
    """A model call inside an agent, whose attributes are set at its end."""
    with observed.monitor.execution("a"), observed.tracer.start_as_current_span("chat", attributes=CHAT) as span:
        span.set_attributes({"gen_ai.usage.input_tokens": 1000, **attributes})


def costs(observed: Observed) -> tuple[tuple[str | None, str | None], tuple[str | None, str | None]]:
    """Cost and its source, of the step and of the execution."""
    (step,), (row,) = observed.steps, observed.executions
    return (step["cost_usd"], step["cost_source"]), (row["cost_usd"], row["cost_source"])


# What is taken


def test_spans_that_are_not_genai_are_let_pass(observed: Observed) -> None:
    with observed.tracer.start_as_current_span("GET /"):
        pass
    assert (observed.executions, observed.steps, observed.errors()) == ([], [], {})
    assert observed.pipeline("spanledger_open_spans") == 0


def test_an_unknown_operation_is_a_step(observed: Observed) -> None:
    with (
        observed.monitor.execution("a") as run,
        observed.tracer.start_as_current_span("r", attributes={"gen_ai.operation.name": "retrieval"}) as span,
    ):
        span.set_attribute("gen_ai.usage.input_tokens", 5)  # no inference: no usage
    (step,) = observed.steps
    assert (step["operation"], step["agent_span_id"], step["input_tokens"]) == ("retrieval", run.span_id, None)
    assert observed.execution("a")["tokens_used"] == "0"


def test_a_tool_outside_any_agent_is_a_step_of_none(observed: Observed) -> None:
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "t"}
    with observed.tracer.start_as_current_span("t", attributes=attributes):
        pass
    (step,) = observed.steps
    assert (step["agent_span_id"], step["tool_name"], observed.executions) == (None, "t", [])


def test_a_span_started_before_us_is_stored_when_it_ends(observe: Observe, tmp_path: Path) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from prometheus_client import CollectorRegistry

    from telemetry import configure

    provider = TracerProvider(shutdown_on_exit=False)
    span = provider.get_tracer("t").start_span("a", attributes=AGENT)
    telemetry = configure(spool_dir=tmp_path / "own", tracer_provider=provider, registry=CollectorRegistry())
    span.end()
    telemetry.spool.seal()
    (segment,) = telemetry.spool.ready()
    assert len(segment.read("executions").splitlines()) == 1
    telemetry.shutdown()


def test_payloads_of_foreign_spans_are_stored_redacted(observed: Observed) -> None:
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "t",
        "gen_ai.tool.call.arguments": '{"to":"a@example.com"}',
        "gen_ai.tool.call.result": "plain words",
    }
    with observed.tracer.start_as_current_span("t", attributes=attributes):
        pass
    (step,) = observed.steps
    assert (step["input_data"], step["output_data"]) == ('{"to":"[redacted email]"}', '"plain words"')


# Prices


def test_a_stated_cost_wins(observed: Observed) -> None:
    call(observed, **{"gen_ai.usage.cost": 0.125})
    assert costs(observed) == (("0.125", "provider"), ("0.125", "provider"))
    labels = {"gen_ai_agent_name": "a", "gen_ai_request_model": "gpt-4o", "gen_ai_provider_name": "openai"}
    assert observed.value("spanledger_cost_usd_total", **labels) == 0.125
    assert observed.value("spanledger_unpriced_tokens_total", **labels) is None


def test_an_unknown_price_is_null_and_counted(observed: Observed) -> None:
    call(observed)
    assert costs(observed) == ((None, "unknown"), (None, "unknown"))
    labels = {"gen_ai_agent_name": "a", "gen_ai_request_model": "gpt-4o", "gen_ai_provider_name": "openai"}
    assert observed.value("spanledger_unpriced_tokens_total", **labels) == 1000
    assert observed.value("spanledger_cost_usd_total", **labels) is None


def test_a_known_model_is_priced_from_the_table(observe: Observe) -> None:
    prices = Prices()
    assert prices.load()
    observed = observe(prices=prices)
    call(observed)
    (cost, source), own = costs(observed)
    assert (source, own) == ("local", (cost, "local"))
    assert Decimal("0.0001") < Decimal(cost or 0) < Decimal("0.1")


@pytest.mark.parametrize("stated", ["free", "nan", "inf", -1, True, ("1", "2")])
def test_a_stated_cost_that_is_none_is_unknown(observed: Observed, stated: Any) -> None:
    call(observed, **{"gen_ai.usage.cost": stated})
    assert costs(observed) == ((None, "unknown"), (None, "unknown"))


def test_a_stated_cost_beyond_reason_is_unknown(observed: Observed) -> None:
    call(observed, **{"gen_ai.usage.cost": "1e400"})
    (row,) = observed.executions
    assert (row["cost_usd"], observed.errors()) == (None, {})
    assert not any(math.isinf(sample.value) for sample in observed.samples("spanledger_cost_usd_total"))


def test_a_time_to_first_chunk_that_is_no_number_is_not_observed(observed: Observed) -> None:
    call(observed, **{"gen_ai.response.time_to_first_chunk": math.nan})
    name = "gen_ai_client_operation_time_to_first_chunk_seconds_sum"
    assert not any(math.isnan(sample.value) for sample in observed.samples(name))


def test_partly_known_costs_are_summed_and_called_partial(observed: Observed) -> None:
    with observed.monitor.execution("a") as run:
        run.record_usage(provider="p", model="m", input_tokens=1, cost_usd=Decimal("0.5"))
        run.record_usage(provider="p", model="m", input_tokens=1)
    row = observed.execution("a")
    assert (row["cost_usd"], row["cost_total_usd"], row["cost_source"]) == ("0.5", "0.5", "partial")


# Clocks


@pytest.mark.parametrize(
    ("age", "stored"),
    [
        (timedelta(days=35, minutes=1), False),
        (timedelta(days=34, hours=23), True),
        (timedelta(minutes=-59), True),
        (timedelta(minutes=-61), False),
    ],
)
def test_rows_outside_the_time_kept_are_set_aside(observed: Observed, age: timedelta, stored: bool) -> None:
    end = time.time_ns() - int(age.total_seconds() * 1e9)
    observed.tracer.start_span("a", attributes=AGENT, start_time=end - 10**9).end(end)
    assert len(observed.executions) == int(stored)
    assert observed.pipeline("spanledger_rows_rejected_total", reason="timestamp") == int(not stored)
    rejected = observed.telemetry.spool.directory / "rejected.ndjson"
    records = [json.loads(line) for line in rejected.read_text().splitlines()] if rejected.exists() else []
    assert [(record["table"], record["reason"]) for record in records] == [("executions", "timestamp")] * (not stored)


def test_retention_decides_how_old_a_row_may_be(observe: Observe) -> None:
    observed = observe(retention=timedelta(days=1))
    end = time.time_ns() - 2 * DAY
    observed.tracer.start_span("a", attributes=AGENT, start_time=end).end(end)
    assert observed.executions == []
    assert observed.pipeline("spanledger_rows_rejected_total", reason="timestamp") == 1


# What cannot be stored


@pytest.mark.parametrize("reason", ["disk_error", "disk_stalled", "spool_full", "spool_closed"])
def test_a_row_the_spool_refuses_is_counted_by_reason(
    observed: Observed, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def refuse(*_: object) -> None:
        raise SpoolError(reason, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "append", refuse)
        with observed.monitor.execution("a") as run, run.tool("t"):
            pass
    dropped = {s.labels["reason"]: s.value for s in observed.samples("spanledger_rows_dropped_total")}
    assert dropped == dict.fromkeys(DROP_REASONS, 0) | {reason: 2}
    assert observed.errors() == {"spool": 2}
    assert observed.value("spanledger_executions_total", gen_ai_agent_name="a", status="success") == 1


def test_a_full_spool_drops_the_newest_and_counts_it(observe: Observe) -> None:
    observed = observe(spool_max_bytes=2000)
    for _ in range(10):
        with observed.monitor.execution("a", input="x" * 500):
            pass
    dropped = observed.pipeline("spanledger_rows_dropped_total", reason="spool_full")
    assert dropped is not None
    assert 0 < dropped == 10 - len(observed.executions)
    assert observed.value("spanledger_executions_total", gen_ai_agent_name="a", status="success") == 10


def test_a_stored_row_is_not_counted_as_dropped(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("our bug")

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "observe_execution", broken)
        with observed.monitor.execution("a"):
            pass
    assert len(observed.executions) == 1
    assert observed.pipeline("spanledger_rows_dropped_total", reason="error") == 0
    assert observed.errors() == {"metrics": 1}


def test_an_error_in_the_metrics_of_a_step_keeps_its_execution(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("our bug")

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "observe_step", broken)
        with observed.tracer.start_as_current_span("chat", attributes=CHAT) as span:
            span.set_attribute("gen_ai.usage.input_tokens", 5)
    assert (len(observed.steps), len(observed.executions)) == (1, 1)


def test_a_response_model_without_a_price_is_priced_as_the_one_asked_for(observe: Observe) -> None:
    prices = Prices()
    assert prices.load()
    observed = observe(prices=prices)
    asked = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini"}
    for response_model in ("gpt-4o-mini-2024-07-18", "of-their-own"):
        with observed.tracer.start_as_current_span("chat", attributes=asked) as span:
            span.set_attributes({"gen_ai.response.model": response_model, "gen_ai.usage.input_tokens": 1_000_000})
    assert [(step["cost_usd"], step["cost_source"]) for step in observed.steps] == [("0.150", "local")] * 2


def test_one_execution_in_64_is_timed(observed: Observed) -> None:
    for _ in range(128):
        with observed.monitor.execution("a"), observed.tracer.start_as_current_span("plain"):
            pass
    assert observed.pipeline("spanledger_overhead_seconds_count") == 2
    seconds = observed.pipeline("spanledger_overhead_seconds_sum")
    assert seconds is not None
    assert 0 < seconds < 10
