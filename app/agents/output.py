"""What agents produce. The same models check a language model's JSON and shape our own answers."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

Text = Annotated[str, Field(min_length=1)]


class Card(BaseModel):
    """A flashcard: what is asked, and what is to be remembered."""

    front: Text
    back: Text


class Question(BaseModel):
    """A multiple-choice question. `answer` is one of `options`, word for word."""

    question: Text
    options: list[Text] = Field(min_length=2)
    answer: Text

    @model_validator(mode="after")
    def _answer_is_an_option(self) -> Self:
        if self.options.count(self.answer) != 1:
            raise ValueError("answer must be exactly one of options")
        return self


class Flashcards(BaseModel):
    """`notice` says why there are fewer cards than asked for."""

    cards: list[Card] = Field(min_length=1)
    notice: str | None = None


class Quiz(BaseModel):
    """`notice` says why there are fewer questions than asked for."""

    questions: list[Question] = Field(min_length=1)
    notice: str | None = None


class Summary(BaseModel):
    text: Text


class Reply(BaseModel):
    text: Text


Output = Flashcards | Quiz | Summary | Reply


def shortfall(made: int, asked: int) -> str | None:
    """The notice for `made` out of `asked` pieces; None when nothing is missing."""
    return None if made >= asked else f"Made {made} of {asked}: the content does not give more."
