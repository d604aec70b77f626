"""Costs worked out by hand from published prices; what is not known is None, never 0."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import data_snapshot

from telemetry import prices as module
from telemetry.prices import Prices
from telemetry.usage import Usage

AT = int(datetime(2025, 9, 1, tzinfo=UTC).timestamp()) * 1_000_000_000


@pytest.fixture(scope="module")
def prices() -> Prices:
    made = Prices()
    assert made.load()
    return made


# USD per million tokens as published in September 2025.
# https://openai.com/api/pricing: gpt-4o input 2.50, cached input 1.25, output 10.
# https://docs.x.ai/docs/models: grok-4 input 3, cached input 0.75, output 15.
# https://www.anthropic.com/pricing: Claude Sonnet 4 input 3, cache read 0.30, cache write (5 min) 3.75, output 15.
@pytest.mark.parametrize(
    ("provider", "model", "usage", "cost"),
    [
        ("openai", "gpt-4o", Usage(input_tokens=1000, output_tokens=100), "0.0035"),
        # 600 × 2.50 + 400 × 1.25 + 120 × 10, reasoning being a part of the output
        ("openai", "gpt-4o", Usage(1000, 400, 0, 120, 20), "0.0032"),
        ("openai", "gpt-4o-2024-08-06", Usage(1000, 400, 0, 120, 20), "0.0032"),
        ("azure.ai.openai", "gpt-4o", Usage(1000, 400, 0, 120, 20), "0.0032"),
        ("x_ai", "grok-4", Usage(1000, 400, 0, 100), "0.0036"),  # 600 × 3 + 400 × 0.75 + 100 × 15
        # 500 × 3 + 400 × 0.30 + 100 × 3.75 + 100 × 15
        ("anthropic", "claude-sonnet-4-20250514", Usage(1000, 400, 100, 100), "0.003495"),
        ("openai", "gpt-4o", Usage(), "0"),
    ],
)
def test_known_models(prices: Prices, provider: str, model: str, usage: Usage, cost: str) -> None:
    assert prices.cost(provider, model, usage, AT) == Decimal(cost)


def test_a_price_is_that_of_its_day(prices: Prices) -> None:
    """o3 went from 10 to 2 USD per million input tokens on 10 June 2025 (OpenAI's announcement of that day)."""
    usage = Usage(input_tokens=1_000_000)
    days = [datetime(2025, 6, 1, tzinfo=UTC), datetime(2025, 6, 20, tzinfo=UTC)]
    costs = [prices.cost("openai", "o3", usage, int(day.timestamp()) * 1_000_000_000) for day in days]
    assert costs == [Decimal(10), Decimal(2)]


@pytest.mark.parametrize(
    ("provider", "model"),
    [("openai", "no-such-model"), ("no-such-provider", "gpt-4o"), ("openai", ""), (None, "gpt-4o"), ("openai", None)],
)
def test_unknown_is_none(prices: Prices, provider: str | None, model: str | None) -> None:
    for _ in range(2):
        assert prices.cost(provider, model, Usage(1000, 0, 0, 100), AT) is None


def test_counts_that_contradict_each_other_have_no_price(prices: Prices) -> None:
    contradiction = Usage(input_tokens=10, cache_read_tokens=80)
    assert prices.cost("openai", "gpt-4o", contradiction, AT) is None
    assert prices.cost("openai", "gpt-4o", Usage(input_tokens=1000), AT) == Decimal("0.0025")


def test_unknown_models_are_remembered_within_bounds() -> None:
    made = Prices()
    assert made.load()
    for number in range(4200):
        made.cost("no-such-provider", f"model-{number}", Usage(1), AT)
    assert len(made._unknown) == 4096


def test_not_loaded_is_none() -> None:
    assert Prices().cost("openai", "gpt-4o", Usage(1000), AT) is None


def test_not_installed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    made = Prices()
    assert not made.load()
    assert made.cost("openai", "gpt-4o", Usage(1000), AT) is None
    assert [record.message for record in caplog.records] == [
        "genai-prices is not installed: costs stay unknown (pip install 'spanledger[prices]')"
    ]


def test_every_translated_provider_is_in_the_table() -> None:
    known = {provider.id for provider in data_snapshot.get_snapshot().providers}
    assert set(module._PROVIDERS.values()) - known == set()
