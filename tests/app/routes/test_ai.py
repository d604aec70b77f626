from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.types import ASGIApp

from app import problems
from app.agents import Emit, Progress
from app.middleware import RequestIdMiddleware
from app.routes import ai
from app.settings import Settings
from tests.app.agents.recording import Recording, recording
from tests.openai_server import Fault, OpenAIServer, serve

TOKEN = "t" * 20
PATH = "/api/ai/process-stream"
SEED: dict[str, Any] = {
    "type": "flashcard_generation",
    "user_id": "18717267-0855-433c-b160-04c3443daa80",
    "message": "Create flashcards about Python",
    "options": {"count": 3, "difficulty": "medium", "content": "Python is a programming language"},
}
CHAT: dict[str, Any] = {"type": "chat", "user_id": "ada", "message": "What is Python?"}


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recording]:
    with recording(tmp_path) as recorded:
        yield recorded


def service(recorded: Recording, **settings: Any) -> ASGIApp:
    app = FastAPI()
    app.state.settings = Settings.model_construct(**settings)  # reads no environment
    app.state.telemetry = recorded.telemetry
    problems.install(app)
    app.include_router(ai.router)
    return RequestIdMiddleware(app)


def parse(stream: str) -> list[tuple[str, Any]]:
    """Server-sent events as (name, data); comments as ("", text). Source: WHATWG HTML, section 9.2.6."""
    events = []
    for block in stream.split("\n\n"):
        name, data = "", []
        for line in block.splitlines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field in ("data", ""):
                data.append(value)
        if data:
            events.append((name, json.loads("\n".join(data)) if name else data[0]))
    return events


@pytest.fixture
def base_url(recorded: Recording) -> Iterator[str]:
    with serve(service(recorded)) as base_url:
        yield base_url


def test_the_documented_request_streams_cards(base_url: str, recorded: Recording) -> None:
    response = httpx.post(base_url + PATH, json=SEED, headers={"X-Request-ID": "r-1"})

    cards = [
        {"front": "Python is a ____", "back": "programming language"},
        {"front": "____ is a programming language", "back": "Python"},
    ]
    *_, root = recorded.spans
    context = root.get_span_context()
    assert context is not None
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert parse(response.text) == [
        ("progress", {"agent": "main_orchestrator", "message": "routing to flashcard_generation"}),
        ("progress", {"agent": "flashcard_generation", "message": "working"}),
        ("partial", {"agent": "flashcard_generation", "delta": cards[0]}),
        ("partial", {"agent": "flashcard_generation", "delta": cards[1]}),
        (
            "result",
            {
                "trace_id": f"{context.trace_id:032x}",
                "span_id": f"{context.span_id:016x}",
                "request_id": "r-1",
                "type": "flashcard_generation",
                "tokens": 46,
                "cost_usd": 0.0,
                "output": {"cards": cards, "notice": "Made 2 of 3: the content does not give more."},
            },
        ),
    ]
    name = "invoke_agent main_orchestrator"
    assert recorded.attribute(name, "user.id") == SEED["user_id"]
    assert recorded.attribute(name, "session.id") is None


def test_a_failure_is_an_event_of_a_stream_that_has_begun(base_url: str) -> None:
    response = httpx.post(base_url + PATH, json={**SEED, "options": {"content": ""}})

    name, error = parse(response.text)[-1]
    assert (response.status_code, name, error["type"]) == (200, "error", "EmptyContent")
    assert error["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (json.dumps({**SEED, "type": "poetry"}), 422, "'flashcard_generation', 'summary', 'quiz' or 'chat'"),
        (json.dumps({**SEED, "options": {"count": 99}}), 422, "less than or equal to 50"),
        (json.dumps({"type": "chat"}), 422, "user_id"),
        (b"{", 422, "not valid JSON"),
        (json.dumps({**SEED, "message": "Zürich"}, ensure_ascii=False).encode("latin-1"), 400, "not UTF-8"),
    ],
)
def test_a_wrong_body_is_a_problem_that_says_what_is_allowed(
    base_url: str, body: str | bytes, status: int, said: str
) -> None:
    response = httpx.post(base_url + PATH, content=body, headers={"Content-Type": "application/json"})

    assert (response.status_code, said in response.text) == (status, True), response.text
    assert response.headers["content-type"] == "application/problem+json"


def test_the_api_token_is_asked_for_where_one_is_set(recorded: Recording) -> None:
    with serve(service(recorded, api_token=SecretStr(TOKEN))) as base_url:
        statuses = [
            httpx.post(base_url + PATH, json=CHAT, headers=headers).status_code
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {TOKEN}"})
        ]

    assert statuses == [401, 401, 200]


def test_a_client_that_leaves_cancels_the_agent_and_its_model_call(
    recorded: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    with OpenAIServer() as server, serve(service(recorded, openai_base_url=server.base_url)) as base_url:
        server.delay_seconds = 30
        server.fail(Fault.SLOW)
        with httpx.stream("POST", base_url + PATH, json=CHAT) as response:
            lines = response.iter_lines()
            assert next(lines) == "event: progress"
            deadline = time.monotonic() + 5
            while not server.requests and time.monotonic() < deadline:
                time.sleep(0.01)
            assert recorded.outcomes == []
        while len(recorded.outcomes) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)

        assert recorded.outcomes == [
            ("chat gpt-4o-mini", "failure"),  # error.type CancelledError
            ("invoke_agent chat", "cancelled"),
            ("invoke_agent main_orchestrator", "cancelled"),
        ]
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_server_that_stops_cancels_the_agent(recorded: Recording) -> None:
    with OpenAIServer() as server, ExitStack() as stack:
        server.delay_seconds = 30
        server.fail(Fault.SLOW)
        base_url = stack.enter_context(serve(service(recorded, openai_base_url=server.base_url)))
        with httpx.stream("POST", base_url + PATH, json=CHAT) as response:
            next(response.iter_lines())
            stack.close()  # the service, while its client still listens

    assert recorded.outcomes[-2:] == [
        ("invoke_agent chat", "cancelled"),
        ("invoke_agent main_orchestrator", "cancelled"),
    ]


def test_silence_is_filled_with_comments() -> None:
    async def work(emit: Emit) -> None:
        await asyncio.sleep(0.5)
        await emit(Progress(agent="chat", message="late"))

    with serve(ai.EventStream(work, heartbeat_seconds=0.1)) as base_url:
        response = httpx.get(base_url)

    events = parse(response.text)
    beats = [event for event in events if event == ("", "keep-alive")]
    assert 2 <= len(beats) <= 5
    assert events[len(beats) :] == [("progress", {"agent": "chat", "message": "late"})]
    assert response.text.startswith(": keep-alive\n\n")


def test_more_events_than_the_buffer_holds_all_arrive_in_order() -> None:
    count = 4 * ai.BUFFERED_EVENTS

    async def work(emit: Emit) -> None:
        for number in range(count):
            await emit(Progress(agent="chat", message=f"line\nbreak {number}"))

    with serve(ai.EventStream(work)) as base_url:
        events = parse(httpx.get(base_url).text)

    assert [data["message"] for _, data in events] == [f"line\nbreak {number}" for number in range(count)]
