"""What thinks for the agents: a model behind an OpenAI-compatible server, or the built-in local engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from app.settings import Settings
from telemetry import Run, Telemetry

from .extractive import ExtractiveEngine
from .output import Card, Question
from .request import AgentRequest

Say = Callable[[str], Awaitable[None]]
"""Takes the next words of a text as they are made."""


class Engine(Protocol):
    """Turns a request into cards, questions or words. Every model call is recorded as a step of `run`.

    Raises an `AgentError` for everything a caller can be told about.
    """

    async def flashcards(self, request: AgentRequest, run: Run) -> list[Card]: ...

    async def quiz(self, request: AgentRequest, run: Run) -> list[Question]: ...

    async def summary(self, request: AgentRequest, run: Run, say: Say) -> str: ...

    async def chat(self, request: AgentRequest, run: Run, say: Say) -> str: ...


@asynccontextmanager
async def open_engine(settings: Settings, telemetry: Telemetry) -> AsyncIterator[Engine]:
    """The engine the settings ask for. The OpenAI client is imported only if one of its settings is there."""
    if settings.openai_api_key is None and settings.openai_base_url is None:
        yield ExtractiveEngine()
        return

    from .chat_completions import open_chat_completions

    await asyncio.to_thread(telemetry.prices.load)  # takes most of a second: now, not while a request waits
    async with open_chat_completions(
        api_key=settings.openai_api_key.get_secret_value() if settings.openai_api_key else None,
        base_url=settings.openai_base_url,
        model=settings.openai_model,
        timeout_seconds=settings.agent_timeout_seconds,
        tracer_provider=telemetry.tracer_provider,
    ) as engine:
        yield engine
