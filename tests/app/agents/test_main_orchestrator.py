from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from app.agents import AgentRequest, Engine, Event
from app.agents.extractive import ExtractiveEngine
from app.agents.main_orchestrator import main_orchestrator
from telemetry import bind
from tests.app.agents.recording import Recording, ask, events_of

PYTHON = "Python is a programming language"
CARDS = [
    {"front": "Python is a ____", "back": "programming language"},
    {"front": "____ is a programming language", "back": "Python"},
]
OPTIONS = ["programming language", "Python"]
QUESTIONS = [
    {"question": "Python is a ____", "options": OPTIONS, "answer": "programming language"},
    {"question": "____ is a programming language", "options": OPTIONS, "answer": "Python"},
]
NOTICE = "Made 2 of 3: the content does not give more."


def data(events: list[Event]) -> list[tuple[str, dict[str, Any]]]:
    return [(event.name, event.model_dump()) for event in events]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("agent", "deltas", "output", "tokens", "items"),
    [
        ("flashcard_generation", CARDS, {"cards": CARDS, "notice": NOTICE}, 40, ("cards", 2)),
        ("quiz", QUESTIONS, {"questions": QUESTIONS, "notice": NOTICE}, 64, ("questions", 2)),
        ("summary", [PYTHON], {"text": PYTHON}, 18, ("words", 5)),
        ("chat", [PYTHON], {"text": PYTHON}, 18, ("words", 5)),
    ],
)
async def test_each_agent_streams_its_work_and_is_recorded(
    recorded: Recording, agent: str, deltas: list[Any], output: Any, tokens: int, items: tuple[str, int]
) -> None:
    with bind(request_id="r-1"):
        events = await events_of(ask(agent, PYTHON, message="Python?"), ExtractiveEngine())

    *_, root = recorded.spans
    context = root.get_span_context()
    assert context is not None
    assert data(events) == [
        ("progress", {"agent": "main_orchestrator", "message": f"routing to {agent}"}),
        ("progress", {"agent": agent, "message": "working"}),
        *(("partial", {"agent": agent, "delta": delta}) for delta in deltas),
        (
            "result",
            {
                "trace_id": f"{context.trace_id:032x}",
                "span_id": f"{context.span_id:016x}",
                "request_id": "r-1",
                "type": agent,
                "tokens": tokens,
                "cost_usd": 0.0,
                "output": output,
            },
        ),
    ]
    assert recorded.outcomes == [
        ("chat extractive-1", "success"),
        (f"invoke_agent {agent}", "success"),
        ("invoke_agent main_orchestrator", "success"),
    ]
    kind, count = items
    assert recorded.attribute(f"invoke_agent {agent}", f"spanledger.items.{kind}") == count
    for name, value in (("user.id", "ada"), ("session.id", "s-1"), ("spanledger.request.id", "r-1")):
        assert recorded.attribute(f"invoke_agent {agent}", name) == value


@pytest.mark.anyio
@pytest.mark.parametrize("agent", ["flashcard_generation", "quiz", "summary"])
async def test_empty_content_is_a_failure_that_says_what_to_send(recorded: Recording, agent: str) -> None:
    *_, last = await events_of(ask(agent, " \n"), ExtractiveEngine())

    outcome = last.model_dump(exclude={"trace_id", "span_id"})
    assert (last.name, outcome) == (
        "error",
        {
            "request_id": None,
            "type": "EmptyContent",
            "message": "There is nothing to work on: send the text to study in options.content.",
        },
    )
    assert recorded.outcomes == [
        (f"invoke_agent {agent}", "failure"),
        ("invoke_agent main_orchestrator", "failure"),
    ]


class StuckEngine(ExtractiveEngine):
    """Says one word, then waits for ever."""

    async def chat(self, request: Any, run: Any, say: Any) -> str:
        await say("Well")
        await asyncio.Event().wait()
        raise AssertionError


class TimedOutEngine(ExtractiveEngine):
    async def chat(self, request: Any, run: Any, say: Any) -> str:
        raise TimeoutError("a timeout of somebody below")


class BrokenEngine(ExtractiveEngine):
    async def chat(self, request: Any, run: Any, say: Any) -> str:
        raise ZeroDivisionError("secret detail")


async def error_of(engine: Engine) -> tuple[str, str]:
    *_, last = await events_of(ask("chat"), engine, timeout_seconds=0.05)
    outcome = last.model_dump()
    return outcome["type"], outcome["message"].replace(outcome["trace_id"], "TRACE")


@pytest.mark.anyio
async def test_an_agent_that_takes_too_long_is_a_timeout(recorded: Recording) -> None:
    assert await error_of(StuckEngine()) == (
        "DeadlineExceeded",
        "The agent took longer than it may. Try again, or send a shorter text.",
    )
    assert recorded.outcomes == [
        ("invoke_agent chat", "timeout"),
        ("invoke_agent main_orchestrator", "timeout"),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(("of_request", "of_service"), [(0.05, 600.0), (600.0, 0.05)])
async def test_the_shorter_deadline_holds(recorded: Recording, of_request: float, of_service: float) -> None:
    options = {"content": PYTHON, "timeout_seconds": of_request}
    request = AgentRequest.model_validate({"type": "chat", "user_id": "u", "message": "m", "options": options})
    events: list[Event] = []

    async def emit(event: Event) -> None:
        events.append(event)

    await main_orchestrator(request, StuckEngine(), emit, timeout_seconds=of_service)
    assert events[-1].model_dump()["type"] == "DeadlineExceeded"
    assert recorded.outcomes == [
        ("invoke_agent chat", "timeout"),
        ("invoke_agent main_orchestrator", "timeout"),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("engine", "type", "status"),
    [(TimedOutEngine(), "TimeoutError", "timeout"), (BrokenEngine(), "ZeroDivisionError", "failure")],
)
async def test_an_unexpected_error_is_logged_and_not_shown(
    recorded: Recording, caplog: pytest.LogCaptureFixture, engine: Engine, type: str, status: str
) -> None:
    with caplog.at_level(logging.ERROR):
        error = await error_of(engine)

    message = "Something went wrong inside the service. Its log and the trace TRACE say more."
    assert error == (type, message)
    assert recorded.outcomes == [("invoke_agent chat", status), ("invoke_agent main_orchestrator", status)]
    assert [record.getMessage() for record in caplog.records] == ["an agent failed unexpectedly"]


@pytest.mark.anyio
async def test_cancelling_the_task_cancels_the_executions_and_emits_nothing_more(recorded: Recording) -> None:
    events: list[Event] = []
    said = asyncio.Event()

    async def emit(event: Event) -> None:
        events.append(event)
        if event.name == "partial":
            said.set()

    task = asyncio.create_task(main_orchestrator(ask("chat"), StuckEngine(), emit, timeout_seconds=10))
    await said.wait()
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert [event.name for event in events] == ["progress", "progress", "partial"]
    assert recorded.outcomes == [
        ("invoke_agent chat", "cancelled"),
        ("invoke_agent main_orchestrator", "cancelled"),
    ]
