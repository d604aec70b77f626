from __future__ import annotations

import time

import pytest

from app.agents.text import Text

PLANTS = (
    "Photosynthesis is the process by which plants convert light into chemical energy. Chlorophyll absorbs light. "
    "The Calvin cycle fixes carbon dioxide. Melvin Calvin described the Calvin cycle."
)


def test_key_phrases_come_by_weight_and_from_the_sentence_they_begin() -> None:
    phrases = [(phrase.text, phrase.sentence.text) for phrase in Text(PLANTS).key_phrases()]

    energy = "Photosynthesis is the process by which plants convert light into chemical energy."
    assert phrases[:5] == [
        ("Calvin cycle", "The Calvin cycle fixes carbon dioxide."),
        ("Calvin", "Melvin Calvin described the Calvin cycle."),
        ("chemical energy", energy),
        ("light", "Chlorophyll absorbs light."),
        ("Photosynthesis", energy),
    ]


@pytest.mark.parametrize(
    ("content", "phrases"),
    [
        ("Python is a programming language", ["programming language", "Python"]),
        ("La clorofila es un pigmento verde.", ["pigmento verde", "clorofila"]),
        ("Das Chlorophyll ist ein Farbstoff.", ["Chlorophyll", "Farbstoff"]),
        ("Machine learning is a field.", ["Machine learning", "field"]),
        ("Chlorophyll absorbs the light.", ["Chlorophyll", "light", "absorbs"]),
        ("C++ and C# are not AI.", ["C++", "C#", "AI"]),
        ("In 1961 it was so.", []),
        ("The and of which", []),
    ],
)
def test_key_phrases_of_a_sentence(content: str, phrases: list[str]) -> None:
    assert [phrase.text for phrase in Text(content).key_phrases()] == phrases


def test_short_words_in_many_sentences_are_function_words_of_an_unknown_language() -> None:
    turkish = "Çam bir bitkidir. Gül bir çiçektir. Göl bir sudur. Kedi bir memelidir."

    assert "bir" not in {phrase.text for phrase in Text(turkish).key_phrases()}


@pytest.mark.parametrize("piece", ["a", ". ", "A. ", "- ", "\n ", '."', "-a", "x.) ", "Ab. Cd ef. "])
def test_the_longest_content_allowed_takes_no_more_than_seconds(piece: str) -> None:
    started = time.monotonic()

    Text((piece * 200_000)[:200_000]).key_phrases()

    assert time.monotonic() - started < 5
