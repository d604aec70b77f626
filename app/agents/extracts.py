"""Cards, questions, summaries and answers taken from a text: pure functions, the same answer every time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

from .errors import EmptyContent
from .output import Card, Question
from .request import AgentRequest, Difficulty
from .sentences import Sentence
from .text import Phrase, Text

GAP = "____"
DISTRACTORS: dict[Difficulty, int] = {"easy": 2, "medium": 3, "hard": 4}
# How much a summary minds long sentences: easy takes short plain ones, hard those that hold most.
LENGTH_PENALTY: dict[Difficulty, float] = {"easy": 1.0, "medium": 0.5, "hard": 0.0}
ANSWER_SENTENCES: dict[Difficulty, int] = {"easy": 1, "medium": 2, "hard": 4}

NOTHING_TO_ASK = "The content has no sentence to ask about: send a few full sentences in options.content."
NO_ANSWER = "The content says nothing about that. Ask about something it mentions."
ABILITIES = (
    "I answer from a text: send it in options.content together with your question. "
    "I can also make flashcards (flashcard_generation), a quiz (quiz) or a summary (summary) of it."
)


def cards(request: AgentRequest) -> list[Card]:
    """Up to `count` cards. Easy: fill a gap whose first letter is shown. Medium: fill a gap. Hard: tell what
    the text says about a term.

    Raises:
        EmptyContent: The content has no sentence with a key phrase.
    """
    options = request.options
    made = [_card(phrase, options.difficulty) for phrase in _askable(Text(options.content))]
    if not made:
        raise EmptyContent(NOTHING_TO_ASK)
    return made[: options.count]


def _card(phrase: Phrase, difficulty: Difficulty) -> Card:
    if difficulty == "hard":
        return Card(front=phrase.text, back=phrase.sentence.text)
    gap = phrase.text[0] + GAP if difficulty == "easy" else GAP
    return Card(front=_with_gap(phrase, gap), back=phrase.text)


def questions(request: AgentRequest) -> list[Question]:
    """Up to `count` questions: a sentence with a gap and phrases of the text to fill it. The harder, the more
    phrases there are and the more they resemble the right one.

    Raises:
        EmptyContent: The content has no sentence with a key phrase, or only one phrase.
    """
    options = request.options
    phrases = list(_askable(Text(options.content)))
    made = [
        Question(
            question=_with_gap(phrase, GAP),
            options=sorted([phrase.text, *distractors], key=str.casefold),
            answer=phrase.text,
        )
        for phrase in phrases[: options.count]
        if (distractors := _distractors(phrase, phrases, options.difficulty))
    ]
    if not made:
        raise EmptyContent(NOTHING_TO_ASK)
    return made


def _distractors(answer: Phrase, phrases: list[Phrase], difficulty: Difficulty) -> list[str]:
    def unlike(other: Phrase) -> tuple[bool, int]:
        shape = abs(len(other.text.split()) - len(answer.text.split())) * 10
        shape += abs(len(other.text) - len(answer.text))
        shape += 5 * (other.text[0].isupper() != answer.text[0].isupper())
        # A phrase that stands in the question is excluded by reading it: taken only if there is no other.
        in_sight = other.text.casefold() in answer.sentence.text.casefold()
        return in_sight, -shape if difficulty == "easy" else shape

    others = [phrase for phrase in phrases if phrase is not answer]
    return [phrase.text for phrase in sorted(others, key=unlike)[: DISTRACTORS[difficulty]]]


def _askable(text: Text) -> Iterator[Phrase]:
    """Phrases that leave something of their sentence to read: one a sentence first, then the others."""
    waiting: list[Phrase] = []
    used: set[int] = set()
    for phrase in text.key_phrases():
        if phrase.sentence.text.endswith("?") or len(phrase.sentence.words) - len(phrase.text.split()) < 2:
            continue
        if id(phrase.sentence) in used:
            waiting.append(phrase)
        else:
            used.add(id(phrase.sentence))
            yield phrase
    yield from waiting


def _with_gap(phrase: Phrase, gap: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(phrase.text)}(?!\w)", gap, phrase.sentence.text, flags=re.IGNORECASE)


def summary(request: AgentRequest) -> list[str]:
    """The `count` sentences that hold most of the content's matter, in its order.

    Raises:
        EmptyContent: The content has no sentence.
    """
    text = Text(request.options.content)
    penalty = LENGTH_PENALTY[request.options.difficulty]

    def worth(sentence: Sentence) -> float:
        return text.weight(sentence) / math.pow(len(sentence.words), penalty)

    if not text.sentences:
        raise EmptyContent(NOTHING_TO_ASK)
    return _best(text, worth, request.options.count)


def answer(request: AgentRequest) -> list[str]:
    """The sentences of the content that share most words with the message; rare words weigh more."""
    if not request.options.content.strip():
        return [ABILITIES]
    text = Text(request.options.content)
    asked = {word.stem for word in Sentence(request.message).words if text.is_content(word)}

    def relevance(sentence: Sentence) -> float:
        shared = asked & {word.stem for word in sentence.words}
        return sum(1 / text.frequency[stem] for stem in shared if stem in text.frequency)

    return _best(text, relevance, ANSWER_SENTENCES[request.options.difficulty]) or [NO_ANSWER]


def _best(text: Text, worth: Callable[[Sentence], float], count: int) -> list[str]:
    worths = [worth(sentence) for sentence in text.sentences]
    best = sorted(range(len(worths)), key=lambda place: -worths[place])[:count]
    return [text.sentences[place].text for place in sorted(best) if worths[place] > 0]
