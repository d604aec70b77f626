"""A figure: what was measured, how it spread over the rounds, and what it was meant to be."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Figure(NamedTuple):
    """One measured quantity, a value for each round; the median is what counts.

    `floor` is the most that is accepted (with `at_least`, the least), `aim` what it is built towards; both None for
    what is only shown beside.
    """

    what: str
    unit: str
    values: Sequence[float]
    floor: float | None = None
    aim: float | None = None
    at_least: bool = False

    def cells(self) -> tuple[str, ...]:
        """As a row under `HEADER`."""
        median, low, high = statistics.median(self.values), min(self.values), max(self.values)
        digits = 2 if median < 10 else 1 if median < 100 else 0
        spread = f"{low:.{digits}f}–{high:.{digits}f}" if len(self.values) > 1 else ""
        sign = "≥" if self.at_least else "≤"
        bounds = (f"{sign} {bound:g}" if bound is not None else "" for bound in (self.floor, self.aim))
        return (self.what, self.unit, f"{median:.{digits}f}", spread, *bounds, self._verdict(median))

    def _verdict(self, median: float) -> str:
        if self.aim is not None and self._reaches(median, self.aim):
            return "aim met"
        if self.floor is None:
            return ""
        return "floor kept" if self._reaches(median, self.floor) else "FLOOR BROKEN"

    def _reaches(self, median: float, bound: float) -> bool:
        return median >= bound if self.at_least else median <= bound


HEADER = ("what", "unit", "median", "min–max", "floor", "aim", "")


def ratios(ours: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Ours to the baseline, round by round: both halves of a round ran in the same weather."""
    return [mine / theirs for mine, theirs in zip(ours, baseline, strict=True)]


def differences(ours: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Ours less the baseline, round by round."""
    return [mine - theirs for mine, theirs in zip(ours, baseline, strict=True)]
