from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from app.agents import Engine, Event, main_orchestrator
from app.agents.chat_completions import open_chat_completions
from tests.app.agents.recording import Recording, ask, events_of
from tests.openai_server import CARDS_AND_QUESTIONS, Fault, OpenAIServer, ReportedUsage

MODEL_CALL = "chat gpt-4o-mini"
PYTHON = "Python is a programming language"
TIMEOUT_SECONDS = 0.5


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture
async def engine(server: OpenAIServer, recorded: Recording) -> AsyncIterator[Engine]:
    async with open_chat_completions(
        api_key=None,
        base_url=server.base_url,
        model="gpt-4o-mini",
        timeout_seconds=TIMEOUT_SECONDS,
        tracer_provider=recorded.telemetry.tracer_provider,
    ) as engine:
        yield engine


def reported(recorded: Recording) -> ReportedUsage:
    """The usage on all model-call spans."""
    calls: list[Mapping[str, Any]] = [span.attributes or {} for span in recorded.spans if span.name == MODEL_CALL]
    names = ("input_tokens", "cache_read.input_tokens", "output_tokens", "reasoning.output_tokens")
    sums = [sum(call.get(f"gen_ai.usage.{name}", 0) for call in calls) for name in names]
    return ReportedUsage(len(calls), *sums)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("agent", "output"),
    [
        ("flashcard_generation", {"cards": CARDS_AND_QUESTIONS["cards"], "notice": None}),
        (
            "quiz",
            {"questions": CARDS_AND_QUESTIONS["questions"], "notice": "Made 1 of 2: the content does not give more."},
        ),
        ("summary", {"text": "Python is a programming language."}),
        ("chat", {"text": "Python is a programming language."}),
    ],
)
async def test_each_agent_answers_with_the_usage_the_server_reported(
    server: OpenAIServer, engine: Engine, recorded: Recording, agent: str, output: dict[str, Any]
) -> None:
    *_, result = await events_of(ask(agent, PYTHON, count=2), engine)

    assert (result.name, result.model_dump()["output"]) == ("result", output)
    assert recorded.outcomes == [
        (MODEL_CALL, "success"),
        (f"invoke_agent {agent}", "success"),
        ("invoke_agent main_orchestrator", "success"),
    ]
    assert server.usage.requests == 1
    assert server.usage.cache_read_tokens > 0
    assert reported(recorded) == server.usage
    assert result.model_dump()["tokens"] == server.usage.input_tokens + server.usage.output_tokens


@pytest.mark.anyio
async def test_text_is_streamed_word_by_word(server: OpenAIServer, engine: Engine) -> None:
    events = await events_of(ask("summary", PYTHON), engine)

    deltas = [event.model_dump()["delta"] for event in events if event.name == "partial"]
    assert deltas == ["Python", " is", " a", " programming", " language."]


@pytest.mark.anyio
async def test_the_content_reaches_the_model_marked_as_material(server: OpenAIServer, engine: Engine) -> None:
    await events_of(ask("quiz", PYTHON, message="Ask me", count=7, difficulty="hard"), engine)

    [request] = server.requests
    system, user = request["messages"]
    assert "Make 7 multiple-choice questions" in system["content"]
    assert "for an expert" in system["content"]
    assert user == {"role": "user", "content": f"Ask me\n\n<content>\n{PYTHON}\n</content>"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("agent", "faults", "type", "statuses"),
    [
        ("chat", [Fault.RATE_LIMITED] * 3, "ProviderRateLimited", ["failure"] * 3),
        ("chat", [Fault.SERVER_ERROR] * 3, "ProviderUnavailable", ["failure"] * 3),
        ("chat", [Fault.REFUSED], "ProviderRefused", ["failure"] * 3),
        ("chat", [Fault.DROPPED], "ProviderUnavailable", ["failure"] * 3),
        ("quiz", [Fault.DROPPED] * 3, "ProviderUnavailable", ["failure"] * 3),
        ("chat", [Fault.CUT_SHORT], "ProviderUnavailable", ["success", "failure", "failure"]),
        ("chat", [Fault.EMPTY], "InvalidOutput", ["success", "failure", "failure"]),
        ("chat", [Fault.SLOW] * 3, "ProviderTimeout", ["failure", "timeout", "timeout"]),
        ("quiz", [Fault.INVALID_JSON] * 2, "InvalidOutput", ["success"] * 2 + ["failure"] * 2),
        ("quiz", [Fault.WRONG_SHAPE] * 2, "InvalidOutput", ["success"] * 2 + ["failure"] * 2),
    ],
)
async def test_what_goes_wrong_at_the_provider_becomes_an_error_event(
    server: OpenAIServer,
    engine: Engine,
    recorded: Recording,
    agent: str,
    faults: list[Fault],
    type: str,
    statuses: list[str],
) -> None:
    server.delay_seconds = TIMEOUT_SECONDS + 0.5
    for fault in faults:
        server.fail(fault)

    *_, error = await events_of(ask(agent, PYTHON), engine)

    assert (error.name, error.model_dump()["type"]) == ("error", type)
    assert [status for _, status in recorded.outcomes] == statuses
    assert len(server.requests) == len(faults)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fault", "model_calls"), [(Fault.INVALID_JSON, 2), (Fault.WRONG_SHAPE, 2), (Fault.RATE_LIMITED, 1)]
)
async def test_a_second_attempt_repairs(
    server: OpenAIServer, engine: Engine, recorded: Recording, fault: Fault, model_calls: int
) -> None:
    server.fail(fault)

    *_, result = await events_of(ask("quiz", PYTHON), engine)

    assert result.name == "result"
    assert len(server.requests) == 2
    assert [name for name, _ in recorded.outcomes].count(MODEL_CALL) == model_calls
    assert reported(recorded) == server.usage


@pytest.mark.anyio
async def test_the_agents_own_deadline_ends_the_model_call(
    server: OpenAIServer, engine: Engine, recorded: Recording
) -> None:
    server.delay_seconds = 0.2
    server.fail(Fault.SLOW)

    *_, error = await events_of(ask("chat"), engine, timeout_seconds=0.3)

    assert error.model_dump()["type"] == "DeadlineExceeded"
    assert recorded.outcomes == [
        (MODEL_CALL, "failure"),
        ("invoke_agent chat", "timeout"),
        ("invoke_agent main_orchestrator", "timeout"),
    ]


@pytest.mark.anyio
async def test_a_stream_left_early_ends_its_span(server: OpenAIServer, engine: Engine, recorded: Recording) -> None:
    server.delay_seconds = 0.2
    server.fail(Fault.SLOW)
    said = asyncio.Event()

    async def emit(event: Event) -> None:
        if event.name == "partial":
            said.set()

    task = asyncio.create_task(main_orchestrator(ask("chat"), engine, emit, timeout_seconds=10))
    await said.wait()
    task.cancel()
    await asyncio.wait([task])

    assert recorded.outcomes == [
        (MODEL_CALL, "failure"),  # its span says error.type CancelledError, which makes the step `cancelled`
        ("invoke_agent chat", "cancelled"),
        ("invoke_agent main_orchestrator", "cancelled"),
    ]
    assert recorded.attribute(MODEL_CALL, "error.type") == "asyncio.exceptions.CancelledError"


@pytest.mark.anyio
async def test_the_model_call_continues_the_trace(server: OpenAIServer, engine: Engine, recorded: Recording) -> None:
    await events_of(ask("chat", PYTHON), engine)
    (call,) = [span.context for span in recorded.spans if span.name == MODEL_CALL]
    assert [traceparent.split("-")[1:3] for traceparent in server.traceparents] == [
        [f"{call.trace_id:032x}", f"{call.span_id:016x}"]
    ]
