"""`POST /api/ai/process-stream`: an agent's work as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.agents import AGENTS, AgentRequest, Emit, Event, main_orchestrator, open_engine
from app.auth import require_api_token

HEARTBEAT_SECONDS = 15.0
"""Longest silence on a stream: proxies close a connection that is idle for 30 to 60 s."""

BUFFERED_EVENTS = 32
"""Events an agent may be ahead of its reader; then it waits."""


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
    app.state.telemetry.know_agent(*AGENTS)
    async with open_engine(app.state.settings, app.state.telemetry) as engine:
        yield {"engine": engine}


router = APIRouter(prefix="/api/ai", tags=["ai"], dependencies=[Depends(require_api_token)], lifespan=_lifespan)


class EventStream(StreamingResponse):
    """Streams the events that `work` emits, with a comment line after `heartbeat_seconds` of silence.

    One task does the work. When the client goes away it is cancelled, and the response is over only when the
    task is, so nothing runs on for nobody.
    """

    media_type = "text/event-stream"

    def __init__(self, work: Callable[[Emit], Awaitable[None]], heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        super().__init__(self._frames(), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._work = work
        self._heartbeat_seconds = heartbeat_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        emitted, self._events = anyio.create_memory_object_stream[Event](BUFFERED_EVENTS)
        with emitted, self._events:
            task = asyncio.create_task(self._run(emitted))
            try:
                await super().__call__(scope, receive, send)
            finally:
                task.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([task])

    async def _run(self, emitted: MemoryObjectSendStream[Event]) -> None:
        with emitted:  # closing it ends the stream
            await self._work(emitted.send)

    async def _frames(self) -> AsyncIterator[bytes]:
        while True:
            event = None
            with anyio.move_on_after(self._heartbeat_seconds):
                try:
                    event = await self._events.receive()
                except anyio.EndOfStream:
                    return
            if event is None:
                yield format_sse_event(comment="keep-alive")
            else:
                yield format_sse_event(event=event.name, data_str=event.model_dump_json())


@router.post("/process-stream", status_code=200, response_class=EventStream)
async def process_stream(body: AgentRequest, request: Request) -> EventStream:
    """Run an agent and stream `progress`, `partial` and, last, `result` or `error`.

    The status is 200 as soon as the stream has begun: what goes wrong after that is an `error` event.
    """
    engine = request.state.engine
    timeout_seconds = request.app.state.settings.agent_timeout_seconds

    async def work(emit: Emit) -> None:
        await main_orchestrator(body, engine, emit, timeout_seconds=timeout_seconds)

    return EventStream(work)
