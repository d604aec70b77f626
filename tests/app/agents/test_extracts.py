from __future__ import annotations

import pytest

from app.agents import extracts
from app.agents.errors import EmptyContent
from app.agents.output import Card, Question
from tests.app.agents.recording import ask

PYTHON = "Python is a programming language"
PLANTS = (
    "Plants need light and water. Chlorophyll absorbs the light of the sun. "
    "Roots bring water and minerals from the soil, where they are dissolved. "
    "Oxygen leaves through the stomata."
)


@pytest.mark.parametrize(
    ("difficulty", "cards"),
    [
        (
            "easy",
            [
                Card(front="Python is a p____", back="programming language"),
                Card(front="P____ is a programming language", back="Python"),
            ],
        ),
        (
            "medium",
            [
                Card(front="Python is a ____", back="programming language"),
                Card(front="____ is a programming language", back="Python"),
            ],
        ),
        ("hard", [Card(front="programming language", back=PYTHON), Card(front="Python", back=PYTHON)]),
    ],
)
def test_cards_ask_more_the_harder_they_are(difficulty: str, cards: list[Card]) -> None:
    assert extracts.cards(ask("flashcard_generation", PYTHON, difficulty=difficulty)) == cards


def test_cards_come_from_different_sentences_first() -> None:
    assert extracts.cards(ask("flashcard_generation", PLANTS, count=5)) == [
        Card(front="Plants need ____ and water.", back="light"),
        Card(front="Roots bring ____ and minerals from the soil, where they are dissolved.", back="water"),
        Card(front="____ absorbs the light of the sun.", back="Chlorophyll"),
        Card(front="____ leaves through the stomata.", back="Oxygen"),
        Card(front="____ need light and water.", back="Plants"),
    ]


def test_a_gap_hides_every_occurrence() -> None:
    content = "Light is light, but lightning is not."

    assert extracts.cards(ask("flashcard_generation", content, count=1)) == [
        Card(front="____ is ____, but lightning is not.", back="Light")
    ]


@pytest.mark.parametrize(
    ("difficulty", "options"),
    [
        ("easy", ["Chlorophyll", "light", "Oxygen"]),
        ("medium", ["bring", "leaves", "light", "soil"]),
        ("hard", ["bring", "leaves", "light", "soil", "sun"]),
    ],
)
def test_harder_questions_have_more_and_closer_options(difficulty: str, options: list[str]) -> None:
    [question] = extracts.questions(ask("quiz", PLANTS, count=1, difficulty=difficulty))

    assert question == Question(question="Plants need ____ and water.", options=options, answer="light")


def test_a_single_sentence_gives_questions_with_its_own_phrases() -> None:
    options = ["programming language", "Python"]

    assert extracts.questions(ask("quiz", PYTHON)) == [
        Question(question="Python is a ____", options=options, answer="programming language"),
        Question(question="____ is a programming language", options=options, answer="Python"),
    ]


@pytest.mark.parametrize(
    ("difficulty", "sentences"),
    [
        ("easy", ["Plants need light and water."]),
        ("medium", ["Plants need light and water."]),
        ("hard", ["Roots bring water and minerals from the soil, where they are dissolved."]),
    ],
)
def test_a_summary_takes_plain_or_dense_sentences(difficulty: str, sentences: list[str]) -> None:
    assert extracts.summary(ask("summary", PLANTS, count=1, difficulty=difficulty)) == sentences


def test_a_summary_keeps_the_order_of_the_content() -> None:
    assert extracts.summary(ask("summary", PLANTS, count=2)) == [
        "Plants need light and water.",
        "Roots bring water and minerals from the soil, where they are dissolved.",
    ]


@pytest.mark.parametrize(
    ("message", "difficulty", "sentences"),
    [
        ("What absorbs light?", "easy", ["Chlorophyll absorbs the light of the sun."]),
        (
            "What absorbs light?",
            "medium",
            ["Plants need light and water.", "Chlorophyll absorbs the light of the sun."],
        ),
        ("Who was Napoleon?", "medium", [extracts.NO_ANSWER]),
        ("", "medium", [extracts.NO_ANSWER]),
    ],
)
def test_an_answer_is_what_the_content_says_about_the_message(
    message: str, difficulty: str, sentences: list[str]
) -> None:
    assert extracts.answer(ask("chat", PLANTS, message=message, difficulty=difficulty)) == sentences


def test_without_content_chat_tells_what_it_can_do() -> None:
    assert extracts.answer(ask("chat", " ")) == [extracts.ABILITIES]


@pytest.mark.parametrize("content", ["?!", "Hi", "The and of", "What is Python?"])
def test_content_that_gives_nothing_to_ask_is_refused(content: str) -> None:
    with pytest.raises(EmptyContent, match="send a few full sentences"):
        extracts.cards(ask("flashcard_generation", content))
    with pytest.raises(EmptyContent, match="send a few full sentences"):
        extracts.questions(ask("quiz", content))


def test_content_without_a_sentence_cannot_be_summed_up() -> None:
    with pytest.raises(EmptyContent, match="send a few full sentences"):
        extracts.summary(ask("summary", "?!"))
