"""The engine behind an OpenAI-compatible server. Imported only when settings ask for it: the client is heavy.

There is no `run.inference` here: the official instrumentation makes the spans of the model calls, and those
come through the same door as ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, TypeVar

import openai
from openai.types.chat import ChatCompletionMessageParam
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import BaseModel, ValidationError

from telemetry import Run

from . import errors, prompts
from .engine import Say
from .output import Card, Flashcards, Question, Quiz
from .request import AgentRequest

if TYPE_CHECKING:
    import httpx2  # what the client is built on; not a dependency of ours

Shape = TypeVar("Shape", bound=BaseModel)
Messages = list[ChatCompletionMessageParam]


class ChatCompletionsEngine:
    """Implements `Engine` by one chat completion per answer; unusable JSON is sent back once for repair."""

    def __init__(self, client: openai.AsyncOpenAI, model: str) -> None:
        self._client = client
        self._model = model

    async def flashcards(self, request: AgentRequest, run: Run) -> list[Card]:
        made = await self._structured(prompts.flashcards(request), Flashcards)
        return made.cards[: request.options.count]

    async def quiz(self, request: AgentRequest, run: Run) -> list[Question]:
        made = await self._structured(prompts.quiz(request), Quiz)
        return made.questions[: request.options.count]

    async def summary(self, request: AgentRequest, run: Run, say: Say) -> str:
        return await self._streamed(prompts.summary(request), say)

    async def chat(self, request: AgentRequest, run: Run, say: Say) -> str:
        return await self._streamed(prompts.chat(request), say)

    async def _structured(self, messages: Messages, shape: type[Shape]) -> Shape:
        """One JSON answer in the given shape.

        Raises:
            InvalidOutput: Neither the answer nor its repair has the shape.
        """
        answer = await self._complete(messages)
        try:
            return shape.model_validate_json(answer)
        except ValidationError as error:
            answer = await self._complete([*messages, *prompts.repair(answer, error)])
        try:
            return shape.model_validate_json(answer)
        except ValidationError as error:
            raise errors.InvalidOutput from error

    async def _complete(self, messages: Messages) -> str:
        with _provider_errors():
            completion = await self._client.chat.completions.create(
                model=self._model, messages=messages, response_format={"type": "json_object"}
            )
        return (completion.choices[0].message.content if completion.choices else None) or ""

    async def _streamed(self, messages: Messages, say: Say) -> str:
        text = ""
        finished = False
        with _provider_errors():
            stream = await self._client.chat.completions.create(
                model=self._model, messages=messages, stream=True, stream_options={"include_usage": True}
            )
            async with stream:  # closes the connection and ends the span also when we leave early
                async for chunk in stream:
                    for choice in chunk.choices:  # the last chunk has usage and no choice
                        finished = finished or choice.finish_reason is not None
                        if words := choice.delta.content:
                            text += words
                            await say(words)
        if not finished:
            raise errors.ProviderUnavailable
        if not text.strip():
            raise errors.InvalidOutput
        return text


@asynccontextmanager
async def open_chat_completions(
    *,
    api_key: str | None,
    base_url: str | None,
    model: str,
    timeout_seconds: float,
    tracer_provider: TracerProvider,
) -> AsyncIterator[ChatCompletionsEngine]:
    """An engine whose model calls are instrumented while it is open.

    Args:
        api_key: None for servers that want none, such as a local one.
        base_url: None for OpenAI itself.
        timeout_seconds: The longest silence of the server.
    """
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=tracer_provider)
    try:
        async with openai.AsyncOpenAI(
            api_key=api_key or "none",
            base_url=base_url or "https://api.openai.com/v1",  # said here, so that no environment is read
            timeout=timeout_seconds,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [_continue_trace]}),
        ) as client:
            yield ChatCompletionsEngine(client, model)
    finally:
        instrumentor.uninstrument()


async def _continue_trace(request: httpx2.Request) -> None:
    """W3C trace context for a server that traces too. Never baggage: it would carry what is none of its business."""
    TraceContextTextMapPropagator().inject(request.headers)


@contextmanager
def _provider_errors() -> Iterator[None]:
    try:
        yield
    except openai.APITimeoutError as error:
        raise errors.ProviderTimeout from error
    except openai.RateLimitError as error:
        raise errors.ProviderRateLimited from error
    except openai.APIStatusError as error:
        raise (errors.ProviderUnavailable if error.status_code >= 500 else errors.ProviderRefused) from error
    except openai.APIError as error:  # no connection, a dropped one, an error event within a stream
        raise errors.ProviderUnavailable from error
