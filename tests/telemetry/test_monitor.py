from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from telemetry import AgentMonitor, bind, current_run
from telemetry.content import Content
from telemetry.metrics import Metrics
from telemetry.spool import Spool
from tests.telemetry.conftest import Observe
from tests.telemetry.observed import Observed

NO_SPAN = "0" * 16


def facts(span: ReadableSpan) -> dict[str, Any]:
    """A span as a whole, without its ids and times."""
    status = (span.status.status_code, span.status.description)
    return {
        "name": span.name,
        "kind": span.kind,
        "attributes": dict(span.attributes or {}),
        "status": status,
        "events": [event.name for event in span.events],
        "links": list(span.links),
    }


OK = {"status": (StatusCode.UNSET, None), "events": [], "links": []}


# Spans


def test_the_spans_follow_the_genai_conventions(observed: Observed) -> None:
    with observed.monitor.execution(
        "cards", version="2", user_id="u", session_id="s", request_id="r", input={"content": "text"}
    ) as run:
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
        with run.tool("search", arguments={"q": "x"}) as tool:
            tool.output = ["hit"]
        run.items("cards", 2)
        run.items("cards", 1)
        run.output = "done"
    names = {"gen_ai.agent.name": "cards", "user.id": "u", "session.id": "s", "spanledger.request.id": "r"}
    chat = facts(observed.spans["chat gpt-x"])
    assert chat["attributes"].pop("gen_ai.response.time_to_first_chunk") >= 0
    assert [chat, facts(observed.spans["execute_tool search"]), facts(observed.spans["invoke_agent cards"])] == [
        {
            "name": "chat gpt-x",
            "kind": SpanKind.CLIENT,
            "attributes": {
                **names,
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": "gpt-x",
                "gen_ai.usage.input_tokens": 900,
                "gen_ai.usage.cache_read.input_tokens": 400,
                "gen_ai.usage.cache_write.input_tokens": 100,
                "gen_ai.usage.output_tokens": 120,
                "gen_ai.usage.reasoning.output_tokens": 20,
                "gen_ai.usage.cost": 0.25,
            },
            **OK,
        },
        {
            "name": "execute_tool search",
            "kind": SpanKind.INTERNAL,
            "attributes": {**names, "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"},
            **OK,
        },
        {
            "name": "invoke_agent cards",
            "kind": SpanKind.INTERNAL,
            "attributes": {
                **names,
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.version": "2",
                "gen_ai.usage.input_tokens": 900,
                "gen_ai.usage.output_tokens": 120,
                "spanledger.items.cards": 3,
            },
            **OK,
        },
    ]
    agent, chat_span = observed.spans["invoke_agent cards"], observed.spans["chat gpt-x"]
    assert agent.parent is None
    assert chat_span.parent is not None
    assert chat_span.parent.span_id == agent.context.span_id
    assert (run.trace_id, run.span_id) == (f"{agent.context.trace_id:032x}", f"{agent.context.span_id:016x}")


def test_payloads_are_in_the_row_and_not_on_the_span(observed: Observed) -> None:
    with observed.monitor.execution("a", input="question") as run:
        with run.tool("t", arguments={"q": 1}) as tool:
            tool.output = {"r": 2}
        run.output = "answer"
    row, (step,) = observed.execution("a"), observed.steps
    assert (row["input_data"], row["output_data"]) == ('"question"', '"answer"')
    assert (step["input_data"], step["output_data"]) == ('{"q":1}', '{"r":2}')
    exported = "".join(span.to_json() for span in observed.exporter.get_finished_spans())
    assert [word for word in ("question", "answer", "gen_ai.tool.call", "messages") if word in exported] == []


def test_captured_payloads_are_the_conventions_messages(observe: Observe) -> None:
    observed = observe(capture_content=True)
    with observed.monitor.execution("a", input={"to": "a@example.com"}) as run:
        with run.tool("t", arguments={"q": 1}) as tool:
            tool.output = {"r": 2}
        run.output = "answer"
    agent = dict(observed.spans["invoke_agent a"].attributes or {})
    tool_span = dict(observed.spans["execute_tool t"].attributes or {})
    assert json.loads(str(agent["gen_ai.input.messages"])) == [
        {"role": "user", "parts": [{"type": "text", "content": '{"to":"[redacted email]"}'}]}
    ]
    assert json.loads(str(agent["gen_ai.output.messages"])) == [
        {"role": "assistant", "parts": [{"type": "text", "content": '"answer"'}]}
    ]
    assert tool_span["gen_ai.tool.call.arguments"] == '{"q":1}'
    assert tool_span["gen_ai.tool.call.result"] == '{"r":2}'
    row, (step,) = observed.execution("a"), observed.steps
    assert (row["input_data"], row["output_data"]) == ('{"to":"[redacted email]"}', '"answer"')
    assert (row["attributes"], step["attributes"], step["input_data"]) == ("{}", "{}", '{"q":1}')


# Input and output


def test_the_input_is_taken_at_the_start_and_may_be_replaced(observed: Observed) -> None:
    given = ["before"]
    with observed.monitor.execution("a", input=given) as run:
        given.append("after")
        assert run.input is given
    with observed.monitor.execution("b") as run:
        run.input = {"later": True}
    assert observed.execution("a")["input_data"] == '["before"]'
    assert observed.execution("b")["input_data"] == '{"later":true}'


def test_an_ended_run_lets_its_payloads_go(observed: Observed) -> None:
    class Document: ...

    document = Document()
    gone = weakref.ref(document)
    with observed.monitor.execution("a") as run:
        run.output = document
    del document, run
    gc.collect()
    assert gone() is None


# Usage


def test_usage_so_far_includes_sub_agents(observed: Observed) -> None:
    with observed.monitor.execution("outer") as outer:
        assert (outer.tokens_total, outer.cost_total_usd) == (0, None)
        with outer.inference(provider="p", model="m") as call:
            call.usage(input_tokens=10, output_tokens=1, cost_usd=Decimal("0.5"))
        with observed.monitor.execution("inner") as inner, inner.inference(provider="p", model="m") as call:
            call.usage(input_tokens=20, output_tokens=2, cost_usd=1)
        assert (outer.tokens_total, outer.cost_total_usd) == (33, Decimal("1.5"))
    assert (inner.tokens_total, inner.cost_total_usd) == (22, Decimal("1.0"))


def test_a_later_report_of_usage_replaces_the_earlier_one(observed: Observed) -> None:
    with observed.monitor.execution("a") as run, run.inference(provider="p", model="m") as call:
        call.usage(input_tokens=100, cache_read_tokens=80, cache_write_tokens=10, output_tokens=9, reasoning_tokens=5)
        call.usage(input_tokens=100, output_tokens=10)
    (step,) = observed.steps
    names = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
    assert [step[name] for name in names] == ["100", "0", "0", "10", "0"]


def test_usage_made_elsewhere_is_recorded_as_a_step(observed: Observed) -> None:
    with observed.monitor.execution("a") as run:
        run.record_usage(provider="p", model="m", input_tokens=5, output_tokens=2, cost_usd=Decimal("0.1"))
    row, (step,) = observed.execution("a"), observed.steps
    assert (step["operation"], step["agent_span_id"], step["request_model"]) == ("chat", row["span_id"], "m")
    assert (row["tokens_used"], row["model_used"], row["provider"], row["cost_usd"]) == ("7", "m", "p", "0.1")


@pytest.mark.parametrize("operation", ["chat", "text_completion", "generate_content", "embeddings"])
def test_every_inference_operation_counts(observed: Observed, operation: str) -> None:
    with (
        observed.monitor.execution("a") as run,
        run.inference(provider="p", model="m", operation=operation) as call,
    ):
        call.usage(input_tokens=5)
    assert observed.spans[f"{operation} m"].kind is SpanKind.CLIENT
    assert observed.execution("a")["tokens_used"] == "5"


# Items


def test_items_are_counted_and_kept(observed: Observed) -> None:
    with observed.monitor.execution("a") as run:
        run.items("cards", 2)
        run.items("words", 100)
        run.items("cards", 1)
    attributes = json.loads(observed.execution("a")["attributes"] or "")
    assert attributes == {"spanledger.items.cards": 3, "spanledger.items.words": 100}
    assert observed.value("spanledger_items_total", gen_ai_agent_name="a", kind="cards") == 3
    assert observed.value("spanledger_items_total", gen_ai_agent_name="a", kind="words") == 100


# Status


def test_a_timeout_raised_is_a_timeout(observed: Observed) -> None:
    with pytest.raises(TimeoutError), observed.monitor.execution("a"):
        raise TimeoutError("too slow")
    row = observed.execution("a")
    assert (row["status"], row["error_type"], row["error_message"]) == ("timeout", "TimeoutError", "too slow")


@pytest.mark.anyio
async def test_a_deadline_inside_the_agent_is_a_timeout(observed: Observed) -> None:
    @observed.monitor.agent("a")
    async def agent() -> None:
        run = current_run()
        assert run is not None
        async with asyncio.timeout(0.01):
            with run.inference(provider="p", model="m"):
                await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await agent()
    assert (observed.execution("a")["status"], observed.steps[0]["status"]) == ("timeout", "cancelled")


@pytest.mark.anyio
async def test_a_deadline_outside_the_agent_reaches_it_as_a_cancellation(observed: Observed) -> None:
    """Known limit: the agent sees a CancelledError and cannot know why it came."""

    @observed.monitor.agent("a")
    async def agent() -> None:
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(agent(), 0.01)
    assert observed.statuses() == {"a": "cancelled"}


@pytest.mark.anyio
async def test_a_cancelled_task_is_cancelled_with_all_it_was_in(observed: Observed, quiet: None) -> None:
    @observed.monitor.agent("inner")
    async def inner() -> None:
        await asyncio.sleep(60)

    @observed.monitor.agent("outer")
    async def outer() -> None:
        await inner()

    task = asyncio.create_task(outer())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert observed.statuses() == {"inner": "cancelled", "outer": "cancelled"}
    assert facts(observed.spans["invoke_agent inner"])["status"] == (StatusCode.UNSET, None)


def test_a_failed_step_leaves_the_agent_that_recovers_successful(observed: Observed) -> None:
    with observed.monitor.execution("a") as run:
        try:
            with run.tool("search"):
                raise ValueError("no index")
        except ValueError:
            run.output = "without"
    assert (observed.execution("a")["status"], observed.steps[0]["status"]) == ("success", "failure")


# Trees


@pytest.mark.anyio
async def test_sub_agents_side_by_side_belong_to_their_agent(observed: Observed) -> None:
    @observed.monitor.agent("sub")
    async def sub(tokens: int) -> None:
        run = current_run()
        assert run is not None
        await asyncio.sleep(0)
        with run.inference(provider="p", model="m") as call:
            await asyncio.sleep(0)
            call.usage(input_tokens=tokens)

    with observed.monitor.execution("root") as run:
        await asyncio.gather(*(sub(2**power) for power in range(10)))
    root = observed.execution("root")
    subs = [row for row in observed.executions if row["agent_name"] == "sub"]
    assert {row["parent_agent_span_id"] for row in subs} == {run.span_id}
    assert {row["trace_id"] for row in subs} == {run.trace_id}
    assert sorted(int(row["tokens_used"] or 0) for row in subs) == [2**power for power in range(10)]
    assert (root["tokens_used"], root["tokens_total"], root["is_root"]) == ("0", "1023", "t")


@pytest.mark.anyio
async def test_to_thread_keeps_the_run_and_a_plain_thread_does_not(observed: Observed) -> None:
    def work(name: str) -> None:
        with observed.monitor.execution(name):
            pass

    with observed.monitor.execution("root") as run:
        await asyncio.to_thread(work, "kept")
        thread = threading.Thread(target=work, args=("alone",))
        thread.start()
        thread.join()
    assert observed.execution("kept")["parent_agent_span_id"] == run.span_id
    assert observed.execution("alone")["is_root"] == "t"


def test_a_call_from_another_thread_lands_under_its_run(observed: Observed) -> None:
    with bind(user_id="u"), observed.monitor.execution("root") as run:

        def work() -> None:
            with run.inference(provider="p", model="m") as call:
                call.usage(input_tokens=3)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    (step,) = observed.steps
    assert (step["agent_span_id"], step["agent_name"], step["user_id"]) == (run.span_id, "root", "u")
    assert observed.execution("root")["tokens_used"] == "3"


def test_a_call_stays_under_its_own_run_inside_a_sub_agent(observed: Observed) -> None:
    with (
        observed.monitor.execution("outer") as outer,
        observed.monitor.execution("inner"),
        outer.inference(provider="p", model="m") as call,
    ):
        call.usage(input_tokens=3)
    assert observed.steps[0]["agent_span_id"] == outer.span_id
    assert observed.execution("outer")["tokens_used"] == "3"
    assert observed.execution("inner")["tokens_used"] == "0"


def test_a_call_inside_a_tool_is_the_tools_child(observed: Observed) -> None:
    with (
        observed.monitor.execution("a") as run,
        run.tool("search") as tool,
        run.inference(provider="p", model="m") as call,
    ):
        call.usage(input_tokens=3)
    step = next(step for step in observed.steps if step["operation"] == "chat")
    assert (step["parent_span_id"], step["agent_span_id"]) == (tool.span_id, run.span_id)
    assert observed.execution("a")["tokens_used"] == "3"


@pytest.mark.anyio
async def test_a_task_that_outlives_its_agent_is_late(observed: Observed, quiet: None) -> None:
    over = asyncio.Event()

    @observed.monitor.agent("sub")
    async def sub() -> None:
        await over.wait()

    async def call(run: Any) -> None:
        with run.inference(provider="p", model="early") as early:
            await over.wait()
            early.usage(input_tokens=1)
        with run.inference(provider="p", model="after") as after:
            after.usage(input_tokens=2)

    with bind(user_id="u"), observed.monitor.execution("root") as run:
        tasks = [asyncio.create_task(call(run)), asyncio.create_task(sub())]
        await asyncio.sleep(0)
    over.set()
    await asyncio.gather(*tasks)
    assert [(step["late"], step["agent_span_id"], step["agent_name"], step["user_id"]) for step in observed.steps] == [
        ("t", run.span_id, "root", "u"),
        ("t", run.span_id, "root", "u"),
    ]
    assert (observed.execution("root")["late"], observed.execution("root")["tokens_total"]) == ("f", "0")
    late = observed.execution("sub")
    assert (late["late"], late["parent_agent_span_id"], late["is_root"]) == ("t", run.span_id, "f")


@pytest.mark.anyio
async def test_current_run_is_the_innermost_open_one(observed: Observed) -> None:
    assert current_run().span_id == NO_SPAN
    with observed.monitor.execution("outer") as outer:
        assert current_run() is outer
        with outer.tool("t"):
            assert current_run() is outer
            with observed.tracer.start_as_current_span("http"):
                assert current_run() is outer
        with observed.monitor.execution("inner") as inner:
            assert current_run() is inner
        assert current_run() is outer
    assert current_run().span_id == NO_SPAN


# Our own errors stay with us


@pytest.mark.parametrize(
    ("owner", "method", "where", "stored"),
    [
        (Metrics, "observe_execution", {"metrics": 1.0}, True),
        (Metrics, "know_agent", {"on_start": 1.0}, True),
        (Spool, "append", {"on_end": 1.0}, False),
        (Content, "encode", {"monitor": 3.0}, True),
        (Content, "text", {"monitor": 1.0, "on_end": 1.0}, False),
    ],
)
def test_an_error_of_ours_never_reaches_the_agent(
    observed: Observed,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    where: dict[str, float],
    stored: bool,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("our bug")

    error = KeyError("the agent's own")
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, broken)

        def agent() -> None:
            with observed.monitor.execution("a", input="x") as run:
                run.input = "y"
                run.output = "z"
                raise error

        with pytest.raises(KeyError) as caught:
            agent()
    assert caught.value is error
    assert observed.errors() == where
    assert [row["status"] for row in observed.executions] == (["failure"] if stored else [])


def test_an_exception_that_cannot_be_printed_is_still_a_failure(observed: Observed) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    with pytest.raises(Mute), observed.monitor.execution("a"):
        raise Mute
    row = observed.execution("a")
    assert (row["status"], (row["error_type"] or "").rsplit(".", 1)[-1]) == ("failure", "Mute")
    assert observed.spans["invoke_agent a"].status.status_code is StatusCode.ERROR


def test_unconfigured_everything_passes_through_and_gives_zeros() -> None:
    error = ValueError("mine")

    def agent() -> None:
        with AgentMonitor().execution("a", user_id="u") as run:
            with run.inference(provider="p", model="m") as call:
                call.first_chunk()
                call.usage(input_tokens=1, cost_usd=0.5)
            with run.tool("t") as tool:
                tool.output = 1
            run.items("cards", 1)
            run.record_usage(provider="p", model="m", input_tokens=1)
            run.input, run.output = 1, 2
            assert (run.trace_id, run.span_id, run.tokens_total, run.cost_total_usd) == ("0" * 32, "0" * 16, 0, None)
            current_run().items("cards", 1)
            raise error

    with pytest.raises(ValueError, match="mine") as caught:
        agent()
    assert caught.value is error
