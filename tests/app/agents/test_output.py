from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.agents.output import Question, shortfall


@pytest.mark.parametrize("options", [["a"], ["b", "c"], ["a", "a"], ["a", ""]])
def test_a_question_whose_options_cannot_be_answered_is_refused(options: list[str]) -> None:
    with pytest.raises(ValidationError):
        Question(question="?", options=options, answer="a")


def test_a_shortfall_is_said_only_when_there_is_one() -> None:
    assert [shortfall(made, 3) for made in (2, 3, 4)] == [
        "Made 2 of 3: the content does not give more.",
        None,
        None,
    ]
