from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.usage import MAX_TOKENS, NONE, Usage, read_tokens

IN, OUT = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
READ, WRITE = "gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_write.input_tokens"
REASONING = "gen_ai.usage.reasoning.output_tokens"

counts = st.integers(0, MAX_TOKENS)
costs = st.none() | st.decimals(0, 1000, places=9)
sources = st.sampled_from([None, "provider", "local", "unknown", "mixed", "partial"])
usages = st.builds(Usage, counts, counts, counts, counts, counts, costs, sources)


def consistent(usage: Usage) -> bool:
    return (
        usage.cache_read_tokens + usage.cache_write_tokens <= usage.input_tokens
        and usage.reasoning_tokens <= usage.output_tokens
    )


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, None),
        ({READ: 5}, None),
        ({IN: 0}, NONE),
        ({IN: 900, READ: 400, WRITE: 100, OUT: 120, REASONING: 20}, Usage(900, 400, 100, 120, 20)),
        ({"gen_ai.usage.prompt_tokens": 9, "gen_ai.usage.completion_tokens": 2}, Usage(9, output_tokens=2)),
        ({IN: 8, "gen_ai.usage.prompt_tokens": 9}, Usage(8)),
        ({IN: 9, "gen_ai.usage.cache_creation.input_tokens": 3}, Usage(9, cache_write_tokens=3)),
        ({IN: 9, "gen_ai.usage.cache_read_input_tokens": 3}, Usage(9, 3)),
        ({OUT: 9, "gen_ai.usage.reasoning_tokens": 3}, Usage(output_tokens=9, reasoning_tokens=3)),
        ({IN: 10, READ: 80, WRITE: 5, OUT: 1}, Usage(95, 80, 5, 1)),  # generation A: input without its cache
        ({IN: 1, OUT: 2, REASONING: 9}, Usage(1, output_tokens=9, reasoning_tokens=9)),
        ({IN: -1}, None),
        ({IN: True}, None),
        ({IN: "12"}, None),
        ({IN: 1.5}, None),
        ({IN: MAX_TOKENS}, Usage(MAX_TOKENS)),
        ({IN: MAX_TOKENS + 1, OUT: 1}, Usage(output_tokens=1)),
    ],
)
def test_read_tokens(attributes: dict[str, Any], expected: Usage | None) -> None:
    assert read_tokens(attributes) == expected


@given(st.dictionaries(st.sampled_from([IN, OUT, READ, WRITE, REASONING]), st.integers(-2, MAX_TOKENS + 2)))
def test_what_is_read_is_consistent(attributes: dict[str, Any]) -> None:
    usage = read_tokens(attributes)
    assert usage is None or consistent(usage)


@given(usages, usages, usages)
def test_adding_up_is_associative_and_commutative(one: Usage, two: Usage, three: Usage) -> None:
    assert one.plus(two) == two.plus(one)
    assert one.plus(two.plus(three)) == one.plus(two).plus(three)
    assert one.plus(NONE) == one


@pytest.mark.parametrize(
    ("one", "two", "cost", "source"),
    [
        (Usage(1), Usage(1), None, None),
        (Usage(1, cost_source="unknown"), Usage(1, cost_source="unknown"), None, "unknown"),
        (
            Usage(1, cost_usd=Decimal("0.1"), cost_source="local"),
            Usage(1, cost_usd=Decimal("0.2"), cost_source="local"),
            Decimal("0.3"),
            "local",
        ),
        (
            Usage(1, cost_usd=Decimal("0.1"), cost_source="local"),
            Usage(1, cost_usd=Decimal("0.2"), cost_source="provider"),
            Decimal("0.3"),
            "mixed",
        ),
        (
            Usage(1, cost_usd=Decimal("0.1"), cost_source="local"),
            Usage(1, cost_source="unknown"),
            Decimal("0.1"),
            "partial",
        ),
        (
            Usage(1, cost_usd=Decimal("0.1"), cost_source="mixed"),
            Usage(1, cost_usd=Decimal("0.1"), cost_source="partial"),
            Decimal("0.2"),
            "partial",
        ),
    ],
)
def test_the_sum_says_where_its_cost_is_from(one: Usage, two: Usage, cost: Decimal | None, source: str | None) -> None:
    both = one.plus(two)
    assert (both.tokens, both.cost_usd, both.cost_source) == (2, cost, source)


@pytest.mark.parametrize(
    ("reported", "counted", "expected"),
    [
        (Usage(10, output_tokens=2), Usage(10, output_tokens=2), None),
        (Usage(5), Usage(10, output_tokens=2), None),
        (Usage(15, 5, 0, 2, 0), Usage(10, 5, 0, 2, 0), Usage(5)),
        (Usage(10, output_tokens=3), Usage(10, output_tokens=2), Usage(output_tokens=1)),
        (Usage(10, 8, 0, 0, 0), Usage(10), None),  # only split further: no token more
        (Usage(20, 18, 0, 5, 4), Usage(10, 0, 0, 4, 0), Usage(10, 10, 0, 1, 1)),
        (Usage(20, 6, 9, 0, 0), Usage(10), Usage(10, 6, 4)),
    ],
)
def test_beyond(reported: Usage, counted: Usage, expected: Usage | None) -> None:
    assert reported.beyond(counted) == expected


@given(usages, usages)
def test_what_is_beyond_is_consistent(one: Usage, two: Usage) -> None:
    rest = one.beyond(two)
    assert rest is None or (consistent(rest) and rest.tokens > 0 and rest.cost_usd is None)
