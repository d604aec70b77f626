from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.agents import AgentRequest, Options

SEED: dict[str, Any] = {
    "type": "flashcard_generation",
    "user_id": "18717267-0855-433c-b160-04c3443daa80",
    "message": "Create flashcards about Python",
    "options": {"count": 3, "difficulty": "medium", "content": "Python is a programming language"},
}


def test_the_documented_body_is_taken_as_it_is() -> None:
    assert AgentRequest.model_validate(SEED) == AgentRequest(
        type="flashcard_generation",
        user_id="18717267-0855-433c-b160-04c3443daa80",
        message="Create flashcards about Python",
        options=Options(count=3, difficulty="medium", content="Python is a programming language"),
        session_id=None,
    )


def test_options_have_defaults_and_unknown_fields_are_ignored() -> None:
    body = {"type": "chat", "user_id": "ada", "message": "Hi", "session_id": "s-1", "colour": "red"}

    assert AgentRequest.model_validate(body).model_dump() == {
        "type": "chat",
        "user_id": "ada",
        "message": "Hi",
        "options": {"count": 5, "difficulty": "medium", "content": ""},
        "session_id": "s-1",
    }


@pytest.mark.parametrize(
    ("change", "field", "kind"),
    [
        ({"type": "poetry"}, ("type",), "literal_error"),
        ({"type": None}, ("type",), "literal_error"),
        ({"user_id": ""}, ("user_id",), "string_too_short"),
        ({"user_id": "u" * 201}, ("user_id",), "string_too_long"),
        ({"session_id": ""}, ("session_id",), "string_too_short"),
        ({"message": None}, ("message",), "string_type"),
        ({"message": "m" * 20_001}, ("message",), "string_too_long"),
        ({"message": "\ud800"}, ("message",), "string_unicode"),
        ({"options": {"count": 0}}, ("options", "count"), "greater_than_equal"),
        ({"options": {"count": 51}}, ("options", "count"), "less_than_equal"),
        ({"options": {"difficulty": "brutal"}}, ("options", "difficulty"), "literal_error"),
        ({"options": {"content": "c" * 200_001}}, ("options", "content"), "string_too_long"),
    ],
)
def test_a_value_out_of_bounds_is_named(change: dict[str, Any], field: tuple[str, ...], kind: str) -> None:
    with pytest.raises(ValidationError) as raised:
        AgentRequest.model_validate({**SEED, **change})

    assert [(error["loc"], error["type"]) for error in raised.value.errors()] == [(field, kind)]


@pytest.mark.parametrize("field", ["type", "user_id", "message"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        AgentRequest.model_validate({name: value for name, value in SEED.items() if name != field})

    assert [(error["loc"], error["type"]) for error in raised.value.errors()] == [((field,), "missing")]
