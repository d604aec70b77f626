from __future__ import annotations

import time
from decimal import Decimal
from typing import cast

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from telemetry.execution import Service
from telemetry.metrics import AGENT_SECONDS, CALL_SECONDS, ERROR_TYPES, OTHER, Capped, Metrics, _adder, _observer
from telemetry.semconv import Status
from tests.telemetry.observed import SERVICE, Observed

HERE = Service("tutor", None, None, "test", None)
BUDGET = 20_000


def one_of_everything(observed: Observed) -> str:
    """One execution with a priced call, an unpriced one, a tool and items; gives its span id."""
    with observed.monitor.execution("cards") as run:
        with run.inference(provider="openai", model="gpt-x") as call:
            call.first_chunk()
            call.usage(
                input_tokens=900,
                cache_read_tokens=400,
                cache_write_tokens=100,
                output_tokens=120,
                reasoning_tokens=20,
                cost_usd=Decimal("0.25"),
            )
        run.record_usage(provider="openai", model="new", input_tokens=5, output_tokens=2)
        with run.tool("search"):
            pass
        run.items("cards", 3)
    return run.span_id


def counted(observed: Observed) -> dict[tuple[str, ...], float]:
    """Every counter and count that is not 0: name and label values, by the labels' names in alphabetic order."""
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name not in SERVICE)): sample.value
        for sample in observed.samples()
        if sample.value and sample.name.endswith(("_total", "_count")) and "_ledger_" not in sample.name
    }


def test_every_metric_of_one_execution(observed: Observed) -> None:
    one_of_everything(observed)
    assert counted(observed) == {
        ("spanledger_executions_total", "cards", "success"): 1,
        ("spanledger_requests_total", "cards", "success"): 1,
        ("gen_ai_invoke_agent_duration_seconds_count", "", "cards"): 1,
        ("gen_ai_execute_tool_duration_seconds_count", "", "cards", "search"): 1,
        ("gen_ai_client_operation_duration_seconds_count", "", "cards", "chat", "openai", "gpt-x"): 1,
        ("gen_ai_client_operation_duration_seconds_count", "", "cards", "chat", "openai", "new"): 1,
        ("gen_ai_client_operation_time_to_first_chunk_seconds_count", "cards", "chat", "openai", "gpt-x"): 1,
        ("gen_ai_client_token_usage_count", "cards", "chat", "openai", "gpt-x", "input"): 1,
        ("gen_ai_client_token_usage_count", "cards", "chat", "openai", "gpt-x", "output"): 1,
        ("gen_ai_client_token_usage_count", "cards", "chat", "openai", "new", "input"): 1,
        ("gen_ai_client_token_usage_count", "cards", "chat", "openai", "new", "output"): 1,
        ("spanledger_tokens_total", "cards", "gpt-x", "input"): 900,
        ("spanledger_tokens_total", "cards", "gpt-x", "cache_read"): 400,
        ("spanledger_tokens_total", "cards", "gpt-x", "cache_write"): 100,
        ("spanledger_tokens_total", "cards", "gpt-x", "output"): 120,
        ("spanledger_tokens_total", "cards", "gpt-x", "reasoning"): 20,
        ("spanledger_tokens_total", "cards", "new", "input"): 5,
        ("spanledger_tokens_total", "cards", "new", "output"): 2,
        ("spanledger_cost_usd_total", "cards", "openai", "gpt-x"): 0.25,
        ("spanledger_unpriced_tokens_total", "cards", "openai", "new"): 7,
        ("spanledger_items_total", "cards", "cards"): 3,
    }
    services = {
        tuple(sample.labels[name] for name in SERVICE) for sample in observed.samples("spanledger_tokens_total")
    }
    assert services == {("tutor", "test")}


def test_a_sub_agent_is_no_request(observed: Observed) -> None:
    with observed.monitor.execution("outer"), observed.monitor.execution("inner"):
        pass
    executions = {
        s.labels["gen_ai_agent_name"]: s.value for s in observed.samples("spanledger_executions_total") if s.value
    }
    requests = {
        s.labels["gen_ai_agent_name"]: s.value for s in observed.samples("spanledger_requests_total") if s.value
    }
    assert (executions, requests) == ({"outer": 1, "inner": 1}, {"outer": 1})


def test_the_duration_is_that_of_the_span(observed: Observed) -> None:
    start = time.time_ns()
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
    observed.tracer.start_span("a", attributes=attributes, start_time=start).end(start + 1_500_000_000)
    labels = {"gen_ai_agent_name": "a", "error_type": ""}
    assert observed.value("gen_ai_invoke_agent_duration_seconds_sum", **labels) == 1.5
    buckets = {"1.0": 0, "1.6": 1, "2.5": 1, "+Inf": 1}
    found = {le: observed.value("gen_ai_invoke_agent_duration_seconds_bucket", le=le, **labels) for le in buckets}
    assert found == buckets


def test_in_flight_goes_up_and_down(observed: Observed) -> None:
    seen = []
    with observed.monitor.execution("a"):
        seen.append(observed.value("spanledger_executions_in_flight", gen_ai_agent_name="a"))
        with observed.monitor.execution("a"):
            seen.append(observed.value("spanledger_executions_in_flight", gen_ai_agent_name="a"))
    seen.append(observed.value("spanledger_executions_in_flight", gen_ai_agent_name="a"))
    assert seen == [1, 2, 0]


def test_closed_label_sets_are_at_zero_before_the_first_run(observed: Observed) -> None:
    observed.telemetry.know_agent("a", "b")
    for name in ("spanledger_executions_total", "spanledger_requests_total"):
        samples = {(s.labels["gen_ai_agent_name"], s.labels["status"]): s.value for s in observed.samples(name)}
        assert samples == {(agent, status): 0 for agent in "ab" for status in Status}
    assert observed.value("spanledger_executions_in_flight", gen_ai_agent_name="a") == 0
    assert observed.value("gen_ai_invoke_agent_duration_seconds_count", gen_ai_agent_name="a", error_type="") == 0


def test_they_are_at_zero_as_soon_as_a_run_starts(observed: Observed) -> None:
    with observed.monitor.execution("a"):
        samples = observed.samples("spanledger_executions_total")
    assert {sample.labels["status"]: sample.value for sample in samples} == dict.fromkeys(Status, 0)


# Exposition


def test_exemplars_name_the_trace_and_the_span(observed: Observed) -> None:
    span_id = one_of_everything(observed)
    here = {"trace_id": f"{1:032x}", "span_id": span_id}
    call = here | {"span_id": f"{2:016x}"}
    wanted = {
        "spanledger_executions_total": here,
        "spanledger_requests_total": here,
        "gen_ai_invoke_agent_duration_seconds_bucket": here,
        "gen_ai_client_operation_duration_seconds_bucket": call,
        "gen_ai_client_operation_time_to_first_chunk_seconds_bucket": call,
        "gen_ai_client_token_usage_bucket": call,
        "spanledger_tokens_total": call,
        "spanledger_cost_usd_total": call,
        "gen_ai_execute_tool_duration_seconds_bucket": here | {"span_id": f"{4:016x}"},
        "spanledger_unpriced_tokens_total": here | {"span_id": f"{3:016x}"},
    }
    found = {name: [s.exemplar.labels for s in observed.samples(name) if s.exemplar is not None] for name in wanted}
    assert {name: wanted[name] in labels for name, labels in found.items()} == dict.fromkeys(wanted, True)


def test_there_are_no_created_series(observed: Observed) -> None:
    one_of_everything(observed)
    assert "_created" not in observed.scrape()


def test_users_sessions_and_requests_are_never_labels(observed: Observed) -> None:
    with observed.monitor.execution("a", user_id="user-9", session_id="session-9", request_id="request-9") as run:
        run.record_usage(provider="p", model="m", input_tokens=1)
    text = observed.scrape()
    assert [word for word in ("user-9", "session-9", "request-9") if word in text] == []


def test_odd_names_leave_the_output_readable(observed: Observed) -> None:
    name = 'a"b\\c\nd{}=,é'
    with observed.monitor.execution(name) as run, run.tool(name):
        pass
    assert {sample.labels["gen_ai_agent_name"] for sample in observed.samples("spanledger_executions_total")} == {name}


def test_a_name_that_is_no_unicode_leaves_the_output_readable(observed: Observed) -> None:
    with observed.monitor.execution("a") as run, run.tool("\ud800"):
        pass
    assert "gen_ai_execute_tool_duration_seconds" in observed.scrape()


def test_a_decorated_agent_is_exported_at_0_before_its_first_run(observed: Observed) -> None:
    @observed.monitor.agent("decorated")
    def decorated() -> None: ...

    assert observed.value("spanledger_executions_total", gen_ai_agent_name="decorated", status="failure") == 0
    decorated()
    assert observed.value("spanledger_executions_total", gen_ai_agent_name="decorated", status="success") == 1


# Error types


@pytest.mark.parametrize(
    ("error_type", "label"),
    [
        ("ValueError", "ValueError"),
        ("429", "429"),
        ("openai.RateLimitError", "RateLimitError"),
        ("user-17-failed", OTHER),
    ],
)
def test_error_types_outside_the_list_are_other(observed: Observed, error_type: str, label: str) -> None:
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a", "error.type": error_type}
    observed.tracer.start_span("a", attributes=attributes).end()
    name = "gen_ai_invoke_agent_duration_seconds_count"
    assert observed.value(name, gen_ai_agent_name="a", error_type=label) == 1


def test_error_types_may_be_added() -> None:
    metrics = Metrics(CollectorRegistry(), error_types=["QuotaExceeded"])
    assert (metrics._error("QuotaExceeded"), metrics._error("Other"), metrics._error(None)) == (
        "QuotaExceeded",
        OTHER,
        "",
    )


# Bounds


def test_beyond_its_limit_a_metric_folds_open_labels_and_counts_it() -> None:
    registry = CollectorRegistry()
    overflow = Counter("overflow", "…", registry=registry)
    capped = Capped(Counter("seen", "…", ["agent", "status"], registry=registry), 2, [0], overflow)
    for agent in ("a", "b", "c", "d", "a", "c"):
        capped.labels(agent, "success").inc()
    samples = {
        agent: registry.get_sample_value("seen_total", {"agent": agent, "status": "success"}) for agent in "abcd"
    }
    assert samples == {"a": 2, "b": 1, "c": None, "d": None}
    assert registry.get_sample_value("seen_total", {"agent": OTHER, "status": "success"}) == 3
    assert registry.get_sample_value("overflow_total") == 3


def test_agents_beyond_the_limit_are_folded_with_their_status_and_counted(observed: Observed) -> None:
    observed.telemetry.metrics.executions.limit = 12  # two agents
    for agent in ("a", "b", "c", "d"):
        with observed.monitor.execution(agent):
            pass
    samples = {
        (s.labels["gen_ai_agent_name"], s.labels["service_name"]): s.value
        for s in observed.samples("spanledger_executions_total")
        if s.labels["status"] == "success"
    }
    assert samples == {("a", "tutor"): 1, ("b", "tutor"): 1, (OTHER, OTHER): 2}
    assert (observed.pipeline("spanledger_label_overflow_total", metric="spanledger_executions_total") or 0) > 0
    assert sorted(str(row["agent_name"]) for row in observed.executions) == ["a", "b", "c", "d"]  # rows keep theirs


def test_every_folded_observation_is_counted(observed: Observed) -> None:
    observed.telemetry.metrics.executions.limit = 6  # one agent, but room in the cache above it
    observed.telemetry.know_agent("a")
    counts = []
    observed.telemetry.metrics.requests.limit = 6
    observed.telemetry.metrics.executions.limit = 12
    for _ in range(3):
        with observed.monitor.execution("b"):
            pass
        counts.append(observed.pipeline("spanledger_label_overflow_total", metric="spanledger_requests_total") or 0)
    assert counts[0] < counts[1] < counts[2]


def test_the_budget_of_series_holds() -> None:
    metrics = Metrics(CollectorRegistry())
    series = 0
    for capped in vars(metrics).values():
        if not isinstance(capped, Capped):
            continue
        buckets = len(capped.metric._upper_bounds) if isinstance(capped.metric, Histogram) else 0
        series += capped.limit * (buckets + 2 if buckets else 1)
    assert 10_000 < series <= BUDGET


def test_the_budget_holds_with_what_is_folded() -> None:
    metrics = Metrics(CollectorRegistry())
    errors = [*ERROR_TYPES, ""]
    for index in range(metrics.agent_duration.limit):
        metrics.agent_duration.labels("s", "e", f"agent{index}", "")
    for index in range(metrics.operation_duration.limit):
        metrics.operation_duration.labels("s", "e", "chat", "p", f"model{index}", "a", "")
    for error in errors:
        metrics.agent_duration.labels("s", "e", "one more", error)
        metrics.operation_duration.labels("s", "e", "chat", "p", "one more", "a", error)
    sets = {
        capped.limit: len(capped.metric._metrics) for capped in (metrics.agent_duration, metrics.operation_duration)
    }
    assert {limit: found <= limit + 10 for limit, found in sets.items()} == dict.fromkeys(sets, True)


def test_the_buckets_hold_the_thresholds_of_service_levels() -> None:
    levels = {0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 900.0, 1800.0, 3600.0}
    assert levels <= set(AGENT_SECONDS)
    assert levels <= set(CALL_SECONDS)
    assert {0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92} <= set(CALL_SECONDS)


def test_the_short_ways_to_observe_do_what_the_public_calls_do() -> None:
    public, short = (Histogram("h", "h", ["a"], buckets=AGENT_SECONDS, registry=None).labels("x") for _ in range(2))
    observe = _observer(short)
    for seconds in (0.0, *AGENT_SECONDS, *(bound + 1e-9 for bound in AGENT_SECONDS), 1e9):
        public.observe(seconds)
        observe(seconds)
    assert list(short._child_samples()) == list(public._child_samples())
    counter = Counter("c", "c", ["a"], registry=None).labels("x")
    _adder(counter)(1)
    counter.inc()
    assert next(sample.value for sample in counter._child_samples()) == 2


def test_a_prometheus_client_built_otherwise_is_called_by_its_public_names() -> None:
    class Plain:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def inc(self, amount: float = 1) -> None:
            self.seen.append(amount)

        observe = inc

    plain = Plain()
    _observer(cast(Histogram, plain))(3)
    _adder(cast(Counter, plain))(4)
    assert plain.seen == [3, 4]
