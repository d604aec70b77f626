"""What a caller sees of an agent at work: any number of `progress` and `partial`, one `result` or `error`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from pydantic import BaseModel

from .output import Card, Output, Question
from .request import AgentType


class Event(BaseModel):
    """One server-sent event: `name` is its type, the fields are its JSON data."""

    name: ClassVar[str]


class Progress(Event):
    """An agent has begun."""

    name: ClassVar[str] = "progress"
    agent: str
    message: str


class Partial(Event):
    """A finished piece: the next words of a text, a card or a question."""

    name: ClassVar[str] = "partial"
    agent: AgentType
    delta: str | Card | Question


class _Outcome(Event):
    trace_id: str
    span_id: str
    request_id: str | None


class Result(_Outcome):
    """The work is done. `tokens` and `cost_usd` include sub-agents; an unknown cost is None, never 0."""

    name: ClassVar[str] = "result"
    type: AgentType
    tokens: int
    cost_usd: float | None
    output: Output


class Error(_Outcome):
    """The work failed: `type` is the error's class, `message` says what to do."""

    name: ClassVar[str] = "error"
    type: str
    message: str


Emit = Callable[[Event], Awaitable[None]]
