from __future__ import annotations

import pytest

from app.agents.sentences import Sentence, Word, split


@pytest.mark.parametrize(
    ("content", "sentences"),
    [
        ("", []),
        (" \n\t ", []),
        ("?! ...", []),
        ("Python is a programming language", ["Python is a programming language"]),
        ("One. Two! Three? Four… Five", ["One.", "Two!", "Three?", "Four…", "Five"]),
        (
            "Dr. Benson met J. Smith, e.g. in 1961. He left.",
            ["Dr. Benson met J. Smith, e.g. in 1961.", "He left."],
        ),
        ("Am 3. Mai kam z. B. Ömer. Ärzte halfen.", ["Am 3. Mai kam z. B. Ömer.", "Ärzte halfen."]),
        ("¿Qué es? «Es luz.» ¡Ángela ríe!", ["¿Qué es?", "«Es luz.»", "¡Ángela ríe!"]),
        ("It costs 3.50 dollars. 20 are left.", ["It costs 3.50 dollars.", "20 are left."]),
        ("# Plants\n\n- Oak is a tree\n- Ivy climbs", ["Plants", "Oak is a tree", "Ivy climbs"]),
        ("1. First step\n2) Second step", ["First step", "Second step"]),
        (
            "This line of prose is wrapped because it is longer than sixty\nletters. It goes on.\r\nA short line",
            [
                "This line of prose is wrapped because it is longer than sixty letters.",
                "It goes on.",
                "A short line",
            ],
        ),
    ],
)
def test_sentences(content: str, sentences: list[str]) -> None:
    assert [sentence.text for sentence in split(content)] == sentences


def test_words_know_where_they_stand() -> None:
    assert Sentence("C++ isn't well-known").words == [
        Word("C++", 0, 3),
        Word("isn", 4, 7),
        Word("t", 8, 9),
        Word("well-known", 10, 20),
    ]


def test_words_of_one_family_share_a_stem() -> None:
    assert {word.stem for word in Sentence("Program programs PROGRAMMING").words} == {"progra"}
