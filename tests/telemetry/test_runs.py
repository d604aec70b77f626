from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import SpanContext, TraceFlags

from telemetry.monitor import Run
from telemetry.runs import OpenSpans
from telemetry.usage import Usage
from tests.telemetry.conftest import Observe
from tests.telemetry.observed import Observed, three_sums, total

AGENT = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "p", "gen_ai.request.model": "m"}
TEN = (10, Decimal(0))


def context(span_id: int, trace_id: int = 1) -> SpanContext:
    return SpanContext(trace_id, span_id, False, TraceFlags(1))


@contextmanager
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def run_together(*works: Any) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Usage flows up the tree


def test_a_call_outside_any_agent_is_an_execution_of_its_own(observed: Observed) -> None:
    with observed.tracer.start_as_current_span("chat m", attributes=CHAT) as span:
        span.set_attributes({"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3})
    (row,), (step,) = observed.executions, observed.steps
    assert (row["agent_name"], row["is_root"], row["tokens_used"], row["tokens_total"]) == (
        "_unattributed",
        "t",
        "10",
        "10",
    )
    assert (step["agent_span_id"], step["span_id"], step["late"]) == (row["span_id"], row["span_id"], "f")
    assert three_sums(observed) == (TEN, TEN, TEN)


@pytest.mark.parametrize("inside_agent", [True, False])
def test_a_wrapper_around_a_call_repeats_its_usage_and_is_not_counted(observed: Observed, inside_agent: bool) -> None:
    def wrapped() -> None:
        tracer = observed.tracer
        with tracer.start_as_current_span("wrapper", attributes=CHAT) as outer:
            with (
                tracer.start_as_current_span("http"),
                tracer.start_as_current_span("chat m", attributes=CHAT) as inner,
            ):
                inner.set_attribute("gen_ai.usage.input_tokens", 10)
            outer.set_attribute("gen_ai.usage.input_tokens", 10)

    if inside_agent:
        with observed.monitor.execution("a"):
            wrapped()
    else:
        wrapped()
    assert [step["input_tokens"] for step in observed.steps] == ["10", None]
    (row,) = observed.executions
    assert (row["tokens_used"], row["is_root"]) == ("10", "t")
    assert three_sums(observed) == (TEN, TEN, TEN)


def test_a_wrapper_around_a_call_without_usage_is_counted(observed: Observed) -> None:
    with (
        observed.monitor.execution("a"),
        observed.tracer.start_as_current_span("wrapper", attributes=CHAT) as outer,
    ):
        with observed.tracer.start_as_current_span("chat m", attributes=CHAT):
            pass
        outer.set_attribute("gen_ai.usage.input_tokens", 10)
    assert sorted(step["input_tokens"] or "" for step in observed.steps) == ["", "10"]
    assert observed.execution("a")["tokens_used"] == "10"


def test_a_call_that_runs_an_agent_counts_beside_it(observed: Observed) -> None:
    with (
        observed.monitor.execution("a"),
        observed.tracer.start_as_current_span("chat m", attributes=CHAT) as outer,
    ):
        with observed.monitor.execution("b") as inner:
            inner.record_usage(provider="p", model="m", input_tokens=1)
        outer.set_attribute("gen_ai.usage.input_tokens", 10)
    assert (observed.execution("a")["tokens_used"], observed.execution("a")["tokens_total"]) == ("10", "11")
    assert observed.execution("b")["tokens_total"] == "1"


@pytest.mark.parametrize(("reported", "extra"), [(30, None), (20, None), (45, 15)])
def test_a_foreign_agent_counts_only_beyond_its_descendants(
    observed: Observed, reported: int, extra: int | None
) -> None:
    with observed.tracer.start_as_current_span("invoke_agent f", attributes={**AGENT, "gen_ai.agent.name": "f"}) as f:
        with observed.tracer.start_as_current_span("chat m", attributes=CHAT) as call:
            call.set_attribute("gen_ai.usage.input_tokens", 10)
        with observed.monitor.execution("sub") as sub:
            sub.record_usage(provider="p", model="m", input_tokens=20)
        f.set_attribute("gen_ai.usage.input_tokens", reported)
    row = observed.execution("f")
    assert row["tokens_used"] == str(10 + (extra or 0))
    assert row["tokens_total"] == str(30 + (extra or 0))
    own = [step for step in observed.steps if step["operation"] == "invoke_agent"]
    assert [(step["input_tokens"], step["agent_span_id"], step["parent_span_id"]) for step in own] == (
        [] if extra is None else [(str(extra), row["span_id"], row["span_id"])]
    )
    expected = (30 + (extra or 0), Decimal(0))
    assert three_sums(observed) == (expected, expected, expected)


def test_a_foreign_agent_that_says_so_after_its_start_counts_nothing_twice(observed: Observed) -> None:
    with observed.tracer.start_as_current_span("agent") as agent:
        agent.set_attributes(AGENT)
        with observed.tracer.start_as_current_span("chat m", attributes=CHAT) as call:
            call.set_attribute("gen_ai.usage.input_tokens", 10)
        agent.set_attribute("gen_ai.usage.input_tokens", 10)
    assert total(observed.steps, "input_tokens") == 10
    assert three_sums(observed) == (TEN, TEN, TEN)


def test_a_call_that_says_so_after_its_start_is_an_execution_too(observed: Observed) -> None:
    with observed.tracer.start_as_current_span("call") as call:
        call.set_attributes({**CHAT, "gen_ai.usage.input_tokens": 10})
    assert three_sums(observed) == (TEN, TEN, TEN)


def test_a_span_under_an_ended_tool_still_belongs_to_its_open_agent(observed: Observed) -> None:
    with observed.monitor.execution("a") as run:
        with run.tool("search"):
            inside_tool = trace.set_span_in_context(trace.get_current_span())
        call = observed.tracer.start_span("chat m", inside_tool, attributes=CHAT)
        call.set_attribute("gen_ai.usage.input_tokens", 10)
        call.end()
    assert [row["agent_name"] for row in observed.executions] == ["a"]
    assert observed.execution("a")["tokens_used"] == "10"


Node = tuple[str, int, Any, list[Any]]
costs = st.none() | st.decimals("0.000001", "10", places=6)
trees: st.SearchStrategy[Node] = st.recursive(
    st.tuples(st.just("chat"), st.integers(0, 10**6), costs, st.just([])),
    lambda below: st.tuples(
        st.sampled_from(["agent", "agent", "foreign", "tool", "plain", "wrapper"]),
        st.integers(0, 10**6),
        costs,
        st.lists(below, max_size=4),
    ),
    max_leaves=12,
)


def tokens_below(nodes: list[Node]) -> int:
    """What the model calls of a tree used."""
    return sum(tokens if kind == "chat" else tokens_below(below) for kind, tokens, _, below in nodes)


def play(observed: Observed, nodes: list[Node], parent: Any, ends: list[Any]) -> None:
    """Start the tree; spans are ended by `ends`, the children of one parent in the order hypothesis likes."""
    for kind, tokens, cost, below in nodes:
        attributes: dict[str, Any] = {
            "chat": CHAT,
            "wrapper": CHAT,
            "agent": AGENT,
            "foreign": AGENT,
            "tool": {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "t"},
            "plain": {},
        }[kind]
        span = observed.tracer.start_span(kind, parent, attributes=attributes)
        inner: list[Any] = []
        play(observed, below, trace.set_span_in_context(span), inner)

        def end(
            span: Any = span,
            kind: str = kind,
            tokens: int = tokens,
            cost: Any = cost,
            node: Any = below,
            inner: list[Any] = inner,
        ) -> None:
            for end_child in reversed(inner):
                end_child()
            if kind == "chat":
                span.set_attributes({"gen_ai.usage.input_tokens": tokens, "gen_ai.usage.output_tokens": 1})
                if cost is not None:
                    span.set_attribute("gen_ai.usage.cost", str(cost))
            elif kind == "foreign":
                span.set_attribute("gen_ai.usage.input_tokens", tokens_below(node))
            span.end()

        ends.append(end)


@settings(max_examples=60, deadline=None)
@given(st.lists(trees, min_size=1, max_size=3), st.booleans())
def test_three_sums_are_equal_over_any_tree(nodes: list[Node], backwards: bool) -> None:
    with TemporaryDirectory() as directory:
        observed = Observed(Path(directory) / "spool")
        try:
            ends: list[Any] = []
            play(observed, nodes, None, ends)
            for end in reversed(ends) if backwards else ends:
                end()
            own, totals, steps = three_sums(observed)
            assert own == totals == steps
            calls = [row for row in observed.steps if row["request_model"] == "m" and row["input_tokens"] is not None]
            assert own[0] == sum(int(row["input_tokens"] or 0) + int(row["output_tokens"] or 0) for row in calls)
            assert own[0] >= tokens_below(nodes)
            assert observed.errors() == {}
            assert {row["late"] for row in [*observed.executions, *observed.steps]} <= {"f"}
        finally:
            observed.telemetry.shutdown()


# Threads


def test_threads_that_add_usage_lose_nothing(observed: Observed) -> None:
    with observed.monitor.execution("root") as run:

        def work() -> None:
            for _ in range(200):
                run.record_usage(provider="p", model="m", input_tokens=1, output_tokens=1, cost_usd=Decimal("0.001"))

        with switching_often():
            run_together(work, work, work)
    row = observed.execution("root")
    assert (row["tokens_used"], row["cost_usd"], row["cost_source"]) == ("1200", "0.600", "provider")
    expected = (1200, Decimal("0.6"))
    assert three_sums(observed) == (expected, expected, expected)
    assert (len(observed.steps), observed.errors()) == (600, {})


def test_threads_that_end_executions_lose_none() -> None:
    spans, errors = OpenSpans(remembered=8), []

    def work(trace_id: int) -> None:
        try:
            for span_id in range(1, 20_000):
                spans.start(context(span_id, trace_id), None, AGENT)
                spans.pop(context(span_id, trace_id))
        except Exception as error:
            errors.append(error)

    with switching_often():
        run_together(*(lambda number=number: work(number) for number in range(1, 5)))
    assert errors == []


# Bounds


def test_the_oldest_open_span_is_forgotten_and_counted() -> None:
    spans = OpenSpans(limit=2)
    for span_id in (1, 2, 3):
        spans.start(context(span_id), None, AGENT)
    assert (len(spans), spans.evicted) == (2, 1)
    assert [spans.get(context(span_id)) is not None for span_id in (1, 2, 3)] == [False, True, True]


def test_executions_are_remembered_for_a_while() -> None:
    spans = OpenSpans(remembered=2)
    for span_id in (1, 2, 3):
        spans.start(context(span_id), None, AGENT)
        spans.pop(context(span_id))
    children = [spans.start(context(10 + n), context(n), CHAT) for n in (1, 2, 3)]
    assert [child.execution is not None for child in children] == [False, True, True]


def test_usage_after_the_end_is_late() -> None:
    spans = OpenSpans()
    agent = spans.start(context(1), None, AGENT)
    call = spans.start(context(2), context(1), CHAT)
    assert spans.add_usage(call, Usage(5), "p", "m") is True
    spans.pop(context(1))
    assert spans.end_execution(agent) == (Usage(5), Usage(5), False)
    assert spans.add_usage(call, Usage(5), "p", "m") is False
    assert agent.total == Usage(5)


@pytest.fixture
def evicting(observe: Observe) -> Observed:
    """Room for one open span only."""
    observed = observe()
    from telemetry import monitor

    assert monitor._runtime is not None
    monitor._runtime.spans.limit = 1
    return observed


def test_an_evicted_execution_is_stored_all_the_same(evicting: Observed) -> None:
    with evicting.monitor.execution("outer"), evicting.monitor.execution("inner"):
        pass
    assert evicting.statuses() == {"inner": "success", "outer": "success"}
    assert evicting.pipeline("spanledger_open_spans_evicted_total") == 1


def test_an_evicted_execution_is_not_in_flight_for_ever(evicting: Observed) -> None:
    with evicting.monitor.execution("a"), evicting.monitor.execution("a"):
        pass
    assert evicting.value("spanledger_executions_in_flight", gen_ai_agent_name="a") == 0


def test_an_evicted_executions_usage_is_settled_later(evicting: Observed) -> None:
    def call(run: Run) -> None:
        run.record_usage(provider="p", model="m", input_tokens=5)

    with evicting.monitor.execution("a") as run:
        call(run)
    assert any(row["late"] == "t" for row in [*evicting.executions, *evicting.steps])
