"""Prices: what a model call cost, from the price table of `genai-prices`, or that nobody knows."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from decimal import Decimal

from .usage import Usage

_logger = logging.getLogger("spanledger")
# The conventions' provider names where genai-prices has another one.
_PROVIDERS = {
    "azure.ai.openai": "azure",
    "azure.ai.inference": "azure",
    "aws.bedrock": "aws",
    "gcp.vertex_ai": "google",
    "gcp.gemini": "google",
    "gcp.gen_ai": "google",
    "mistral_ai": "mistral",
    "moonshot_ai": "moonshotai",
    "x_ai": "x-ai",
}


class Prices:
    """The price table: offline, in the package `genai-prices` (extra `prices`); without it every cost is unknown.

    Importing the table takes most of a second and 40 MB, so it is loaded by `load()`, away from any request;
    until then costs are unknown too.
    """

    def __init__(self) -> None:
        self._loaded = False
        self._unknown: set[tuple[str, str]] = set()

    def load(self) -> bool:
        """Load the table; False when the package is not installed."""
        try:
            import genai_prices  # noqa: F401
        except ImportError:
            _logger.warning("genai-prices is not installed: costs stay unknown (pip install 'spanledger[prices]')")
            return False
        self._loaded = True
        return True

    def cost(self, provider: str | None, model: str | None, usage: Usage, at: int) -> Decimal | None:
        """USD for a call that ended `at` (ns since the epoch), or None when the price is unknown, never 0 for it."""
        if not self._loaded or provider is None or model is None or (provider, model) in self._unknown:
            return None
        from genai_prices import Usage as Counts
        from genai_prices import calc_price

        counts = Counts(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_tokens=usage.output_tokens,
        )
        when = datetime.fromtimestamp(at // 1_000_000_000, UTC)
        try:
            price = calc_price(
                counts, model, provider_id=_PROVIDERS.get(provider, provider), genai_request_timestamp=when
            )
        except LookupError:  # no such provider or model, by now or ever
            if len(self._unknown) < 4096:
                self._unknown.add((provider, model))
            return None
        except ValueError:  # counts that contradict each other, such as more from the cache than there was
            return None
        return price.total_price
