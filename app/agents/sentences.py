"""Words and sentences of a text in any Latin-script language."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*[+#]*")
_PARAGRAPH = re.compile(r"\n\s*\n|\n\s*(?=(?:[-*•#>]|\d{1,2}[.)])\s)")
_BULLET = re.compile(r"^(?:[-*•#>]+|\d{1,2}[.)])\s+")
# A sentence ends before a space and a capital, a digit or an opening mark; not after an initial, a day
# ("3. Mai") or a common abbreviation.
_SENTENCE_END = re.compile(
    r"(?:(?<=[.!?…])(?<!\b\w\.)(?<!\b\d\d\.)(?<!\b(?:Dr|Mr|Ms|St|Nr|vs|ca)\.)(?<!\b(?:Mrs|Sra|etc|bzw)\.)"
    r"(?<!\bProf\.)|(?<=[.!?…][\"'”’»)\]]))\s+(?=[\"'“«¿¡(\[]*[^\W_a-zà-öø-ÿ])"
)
_HARD_BREAK_COLUMNS = 60  # a shorter line ended on purpose: a heading or a list, not wrapped prose


@dataclass(frozen=True, slots=True)
class Word:
    """A word and where it stands in its sentence."""

    text: str
    start: int
    end: int

    @property
    def stem(self) -> str:
        """The word as it is counted: cut to six letters, "Programs" and "programming" are one."""
        return self.text.casefold()[:6]


@dataclass(frozen=True)
class Sentence:
    text: str

    @cached_property
    def words(self) -> list[Word]:
        return [Word(match[0], match.start(), match.end()) for match in _WORD.finditer(self.text)]


def split(content: str) -> Iterator[Sentence]:
    """The sentences of a text, without bullets and numbers; headings and list entries are sentences too."""
    for paragraph in _PARAGRAPH.split(content.replace("\r\n", "\n")):
        for block in _lines(paragraph):
            for sentence in _SENTENCE_END.split(_BULLET.sub("", block)):
                if _WORD.search(sentence):
                    yield Sentence(sentence.strip())


def _lines(paragraph: str) -> Iterator[str]:
    block: list[str] = []
    for line in paragraph.split("\n"):
        block.append(" ".join(line.split()))
        if len(line) < _HARD_BREAK_COLUMNS:
            yield " ".join(block).strip()
            block = []
    yield " ".join(block).strip()
