"""What a text in any Latin-script language is about, found by counting words: no model needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from .sentences import Sentence, Word, split
from .stopwords import COPULAS, STOPWORDS


@dataclass(frozen=True, slots=True)
class Phrase:
    """A key phrase and the sentence that says most about it: where it stands nearest the beginning."""

    text: str
    sentence: Sentence


class Text:
    """A text, split and counted once.

    Key phrases follow the idea of RAKE (Rose et al. 2010): runs of words between function words and
    punctuation, weighted by how often their words occur. More than two words are kept together only if they
    recur.
    """

    def __init__(self, content: str) -> None:
        self.sentences = list(split(content))
        self._function_words = self._short_recurring_words()
        self.frequency: Counter[str] = Counter(
            word.stem for sentence in self.sentences for word in sentence.words if self.is_content(word)
        )

    def is_content(self, word: Word) -> bool:
        """Whether the word carries meaning. Two letters do only as an acronym (AI) or a name such as C++."""
        folded = word.text.casefold()
        if len(folded) <= 2 and folded[-1] not in "+#":
            return len(folded) == 2 and word.text.isupper()
        return folded not in STOPWORDS and folded not in self._function_words

    def weight(self, sentence: Sentence) -> int:
        """How much of the text's matter the sentence holds: the frequencies of its distinct content words."""
        return sum(self.frequency[stem] for stem in {w.stem for w in sentence.words if self.is_content(w)})

    def key_phrases(self) -> list[Phrase]:
        """The phrases worth asking about, the weightiest first; equal ones in the order of the text."""
        found: dict[str, tuple[float, int, Phrase]] = {}
        for sentence in self.sentences:
            for words, likely_verb in self._phrases(sentence):
                text = sentence.text[words[0].start : words[-1].end]
                if text.isdecimal():
                    continue
                weight = sum(self.frequency[word.stem] for word in words) - likely_verb / 2
                known = found.get(text.casefold())
                if known is None or words[0].start < known[1]:
                    found[text.casefold()] = (weight, words[0].start, Phrase(text, sentence))
        return [phrase for _, _, phrase in sorted(found.values(), key=lambda entry: -entry[0])]

    def _phrases(self, sentence: Sentence) -> Iterator[tuple[list[Word], bool]]:
        for run in self._runs(sentence):
            clause = run[0] is sentence.words[0] and not self._before_copula(sentence, run[-1])
            pair = len(run) == 2 and not clause
            rest = run
            while rest:
                length = next((n for n in (3, 2) if self._recurs(rest[:n], n)), 2 if pair else 1)
                yield rest[:length], clause and rest is not run
                rest = rest[length:]

    def _before_copula(self, sentence: Sentence, word: Word) -> bool:
        following = next((other for other in sentence.words if other.start > word.end), None)
        return following is not None and following.text.casefold() in COPULAS

    def _recurs(self, words: list[Word], length: int) -> bool:
        return len(words) == length and self._ngrams[tuple(word.stem for word in words)] > 1

    @cached_property
    def _ngrams(self) -> Counter[tuple[str, ...]]:
        return Counter(
            tuple(word.stem for word in run[start : start + length])
            for sentence in self.sentences
            for run in self._runs(sentence)
            for length in (2, 3)
            for start in range(len(run) - length + 1)
        )

    def _runs(self, sentence: Sentence) -> Iterator[list[Word]]:
        run: list[Word] = []
        for word in sentence.words:
            if run and (not self.is_content(word) or sentence.text[run[-1].end : word.start] != " "):
                yield run
                run = []
            if self.is_content(word):
                run.append(word)
        if run:
            yield run

    def _short_recurring_words(self) -> frozenset[str]:
        # Function words of languages the list does not know: short, and in many sentences.
        spread = Counter(
            folded
            for sentence in self.sentences
            for folded in {w.text.casefold() for w in sentence.words if not w.text.isupper()}
            if len(folded) <= 4
        )
        return frozenset(word for word, n in spread.items() if n >= 4 and n * 3 >= len(self.sentences))
