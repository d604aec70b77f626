"""The four agents that do the work.

Each is an ordinary coroutine. `monitor.execution` around its body makes it a span, a set of observations and
a row, with what went in, what came out and how it ended; model calls below add their tokens by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from telemetry import AgentMonitor

from .engine import Engine, Say
from .errors import DeadlineExceeded, EmptyContent
from .event import Emit, Partial, Progress
from .output import Flashcards, Quiz, Reply, Summary, shortfall
from .request import AgentRequest, AgentType

monitor = AgentMonitor()


@dataclass(frozen=True, slots=True)
class Agents:
    """The agents at work on one request: what thinks for them, where events go, how long each may take."""

    engine: Engine
    emit: Emit
    timeout_seconds: float

    async def flashcard_generation(self, request: AgentRequest) -> Flashcards:
        """Make flashcards from the content."""
        with monitor.execution("flashcard_generation", version="1", input=request) as run:
            async with self._working(request):
                cards = await self.engine.flashcards(request, run)
                for card in cards:
                    await self.emit(Partial(agent="flashcard_generation", delta=card))
            run.items("cards", len(cards))
            run.output = output = Flashcards(cards=cards, notice=shortfall(len(cards), request.options.count))
            return output

    async def quiz(self, request: AgentRequest) -> Quiz:
        """Make multiple-choice questions from the content."""
        with monitor.execution("quiz", version="1", input=request) as run:
            async with self._working(request):
                questions = await self.engine.quiz(request, run)
                for question in questions:
                    await self.emit(Partial(agent="quiz", delta=question))
            run.items("questions", len(questions))
            notice = shortfall(len(questions), request.options.count)
            run.output = output = Quiz(questions=questions, notice=notice)
            return output

    async def summary(self, request: AgentRequest) -> Summary:
        """Sum the content up."""
        with monitor.execution("summary", version="1", input=request) as run:
            async with self._working(request):
                text = await self.engine.summary(request, run, self._say("summary"))
            run.items("words", len(text.split()))
            run.output = output = Summary(text=text)
            return output

    async def chat(self, request: AgentRequest) -> Reply:
        """Answer the message; content is welcome but not needed."""
        with monitor.execution("chat", version="1", input=request) as run:
            async with self._working(request, needs_content=False):
                text = await self.engine.chat(request, run, self._say("chat"))
            run.items("words", len(text.split()))
            run.output = output = Reply(text=text)
            return output

    def _say(self, agent: AgentType) -> Say:
        async def say(words: str) -> None:
            await self.emit(Partial(agent=agent, delta=words))

        return say

    @asynccontextmanager
    async def _working(self, request: AgentRequest, *, needs_content: bool = True) -> AsyncIterator[None]:
        """The time an agent is given for its work.

        Raises:
            EmptyContent: The agent needs content and there is none.
            DeadlineExceeded: The time is over.
        """
        await self.emit(Progress(agent=request.type, message="working"))
        if needs_content and not request.options.content.strip():
            raise EmptyContent
        try:
            async with asyncio.timeout(self.timeout_seconds) as limit:
                yield
        except TimeoutError as error:
            if limit.expired():  # otherwise somebody below timed out and has said so better
                raise DeadlineExceeded from error
            raise
