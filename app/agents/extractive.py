"""The built-in engine: it answers in the text's own sentences. Deterministic, free, needs no network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import TypeVar

from telemetry import Run

from . import extracts
from .output import Card, Question
from .request import AgentRequest

PROVIDER = "spanledger"
MODEL = "extractive-1"

Made = TypeVar("Made", str, Card, Question)


def count_tokens(text: str) -> int:
    """This engine's tokens: UTF-8 bytes / 4, rounded up, which is near what common tokenizers count."""
    return -(-len(text.encode()) // 4)


class ExtractiveEngine:
    """Implements `Engine` by choosing from the content. Each answer is one inference, known to be free."""

    async def flashcards(self, request: AgentRequest, run: Run) -> list[Card]:
        return await self._infer(request, run, extracts.cards)

    async def quiz(self, request: AgentRequest, run: Run) -> list[Question]:
        return await self._infer(request, run, extracts.questions)

    async def summary(self, request: AgentRequest, run: Run, say: Callable[[str], Awaitable[None]]) -> str:
        return await self._speak(await self._infer(request, run, extracts.summary), say)

    async def chat(self, request: AgentRequest, run: Run, say: Callable[[str], Awaitable[None]]) -> str:
        return await self._speak(await self._infer(request, run, extracts.answer), say)

    async def _infer(self, request: AgentRequest, run: Run, make: Callable[[AgentRequest], list[Made]]) -> list[Made]:
        with run.inference(provider=PROVIDER, model=MODEL) as call:
            made = await asyncio.to_thread(make, request)  # a long text must not hold up the event loop
            call.usage(
                input_tokens=count_tokens(request.message) + count_tokens(request.options.content),
                output_tokens=sum(map(count_tokens, _texts(made))),
                cost_usd=Decimal(0),
            )
        return made

    async def _speak(self, sentences: list[str], say: Callable[[str], Awaitable[None]]) -> str:
        for number, sentence in enumerate(sentences):
            await say(sentence if number == 0 else " " + sentence)
        return " ".join(sentences)


def _texts(made: Sequence[str | Card | Question]) -> list[str]:
    return [piece if isinstance(piece, str) else piece.model_dump_json() for piece in made]
