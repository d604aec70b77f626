"""Counts: what went wrong in a process, as numbers that add up over processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import orjson

from .guard import Guard
from .processor import DROP_REASONS, ExecutionProcessor
from .runs import OpenSpans
from .spool import Spool

PLACES = ("metrics", "monitor", "on_end", "on_start", "sink", "spool")


class Counts(NamedTuple):
    """Rows dropped and rejected by reason, our own errors by place, and how many of the rest."""

    dropped: Counter[str]
    rejected: Counter[str]
    errors: Counter[str]
    evicted: int = 0  # open spans forgotten
    open_spans: int = 0
    queued_lines: int = 0
    unrecorded_runs: int = 0

    @classmethod
    def none(cls) -> Counts:
        """Every reason and place that is known, at 0."""
        return cls(
            Counter(dict.fromkeys(DROP_REASONS, 0)),
            Counter({"timestamp": 0}),
            Counter(dict.fromkeys(PLACES, 0)),
        )

    @classmethod
    def of(cls, processor: ExecutionProcessor, spans: OpenSpans, spool: Spool, guard: Guard) -> Counts:
        """Those of this process; what the sink rejects is not in it."""
        unrecorded = spool.runs.unrecorded if spool.runs is not None else 0
        return cls(
            *(processor.dropped.copy(), processor.rejected.copy(), guard.counts.copy()),  # other threads count on
            *(spans.evicted, len(spans), spool.queued_lines, unrecorded),
        )

    @classmethod
    def total(cls, parts: Iterable[Counts]) -> Counts:
        """The sum of several."""
        counters, numbers = cls.none()[:3], [0, 0, 0, 0]
        for part in parts:
            for counter, more in zip(counters, part[:3], strict=True):
                counter.update(more)
            numbers = [number + more for number, more in zip(numbers, part[3:], strict=True)]
        return cls(*counters, *numbers)

    @classmethod
    def from_json(cls, document: bytes) -> Counts:
        """What `to_json` wrote.

        Raises:
            ValueError: It is something else, such as half of it.
        """
        values = orjson.loads(document)
        if not isinstance(values, list) or len(values) != len(cls._fields):
            raise ValueError("not the counts of a process")
        dropped, rejected, errors, *numbers = values
        return cls(Counter(dropped), Counter(rejected), Counter(errors), *numbers)

    def to_json(self) -> bytes:
        """For another process, without the zeros."""
        counters = ({name: count for name, count in counter.items() if count} for counter in self[:3])
        return orjson.dumps([*counters, *self[3:]])

    def ended(self) -> Counts:
        """What is left of them when the process has ended: nothing is open there."""
        return self._replace(open_spans=0)
