"""What a caller asks for: the body of `POST /api/ai/process-stream`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, Field

AgentType = Literal["flashcard_generation", "summary", "quiz", "chat"]
Difficulty = Literal["easy", "medium", "hard"]
Identifier = Annotated[str, Field(min_length=1, max_length=200)]

AGENTS = ("main_orchestrator", *get_args(AgentType))
"""The names under which runs are recorded."""


class Options(BaseModel):
    """How the work is to be done. Unknown fields are ignored."""

    count: int = Field(default=5, ge=1, le=50, description="Cards, questions, or sentences of a summary.")
    difficulty: Difficulty = "medium"
    content: str = Field(default="", max_length=200_000, description="The text to work on.")
    timeout_seconds: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        exclude_if=lambda seconds: seconds is None,  # a row's input says what was asked for, no more
        description="The longest time the agent may take, if the service allows as much.",
    )


class AgentRequest(BaseModel):
    """One request of one user. Unknown fields are ignored; a missing session stays None."""

    type: AgentType
    user_id: Identifier
    message: str = Field(max_length=20_000, description="The user's own words; `chat` answers them.")
    options: Options = Field(default_factory=Options)
    session_id: Identifier | None = None
