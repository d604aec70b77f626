"""Usage: the tokens and the cost of model calls, and how two of them add up."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from . import semconv


class Usage(NamedTuple):
    """Token counts of one or more model calls.

    `input_tokens` includes the cache classes and `output_tokens` includes reasoning, as the GenAI conventions
    define them, so `tokens` is input + output. `cost_usd` is the sum of the known costs, None when no call had
    a known one. `cost_source` says where it comes from: `provider` (the sender stated it), `local` (our price
    table), `unknown`; for sums also `mixed` (several sources) and `partial` (some calls unknown).
    """

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: Decimal | None = None
    cost_source: str | None = None

    @property
    def tokens(self) -> int:
        """All tokens of the calls."""
        return self.input_tokens + self.output_tokens

    def plus(self, other: Usage) -> Usage:
        """The usage of both; a cost known on one side only is kept, and called `partial`."""
        cost = self.cost_usd
        if other.cost_usd is not None:
            cost = other.cost_usd if cost is None else cost + other.cost_usd
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            cost,
            _merge_sources(self.cost_source, other.cost_source),
        )

    def beyond(self, other: Usage) -> Usage | None:
        """What these counts report more than `other` does, class by class; None when nothing. No cost.

        Subsets stay within what they are part of, also where the other side did not split them.
        """
        given = max(0, self.input_tokens - other.input_tokens)
        cache_read = min(max(0, self.cache_read_tokens - other.cache_read_tokens), given)
        cache_write = min(max(0, self.cache_write_tokens - other.cache_write_tokens), given - cache_read)
        output = max(0, self.output_tokens - other.output_tokens)
        reasoning = min(max(0, self.reasoning_tokens - other.reasoning_tokens), output)
        return Usage(given, cache_read, cache_write, output, reasoning) if given or output else None


def _merge_sources(one: str | None, other: str | None) -> str | None:
    if one == other or other is None:
        return one
    if one is None:
        return other
    return "partial" if {"unknown", "partial"} & {one, other} else "mixed"


NONE = Usage()
MAX_TOKENS = 2**53  # beyond this a count is a sender's mistake, and JSON readers lose exactness


_REPORTS = frozenset(
    name
    for canonical in (semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS)
    for name in (canonical, *semconv.ALIASES[canonical])
)


def read_tokens(attributes: Mapping[str, Any]) -> Usage | None:
    """The token classes an inference span reports, or None when it reports none.

    Generation A senders (semconv <= 1.36) may leave the cache out of `input_tokens`; a cache larger than the
    input shows it, and is then added. Counts that are no non-negative integers are taken as not reported.
    """
    if _REPORTS.isdisjoint(attributes):
        return None
    input_tokens = _count(attributes, semconv.INPUT_TOKENS)
    output_tokens = _count(attributes, semconv.OUTPUT_TOKENS)
    if input_tokens is None and output_tokens is None:
        return None
    cache_read = _count(attributes, semconv.CACHE_READ_TOKENS) or 0
    cache_write = _count(attributes, semconv.CACHE_WRITE_TOKENS) or 0
    total_input = input_tokens or 0
    if cache_read + cache_write > total_input:
        total_input += cache_read + cache_write
    reasoning = _count(attributes, semconv.REASONING_TOKENS) or 0
    return Usage(total_input, cache_read, cache_write, max(output_tokens or 0, reasoning), reasoning)


def _count(attributes: Mapping[str, Any], name: str) -> int | None:
    value = semconv.first(attributes, name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS:
        return None
    return value
