from __future__ import annotations

import pytest

from app.agents.extractive import ExtractiveEngine, count_tokens
from tests.app.agents.recording import Recording, ask, events_of


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("äöü", 2), ("日本", 2)])
def test_a_token_is_four_bytes(text: str, tokens: int) -> None:
    assert count_tokens(text) == tokens


@pytest.mark.anyio
async def test_an_answer_is_one_inference_known_to_be_free(recorded: Recording) -> None:
    await events_of(ask("chat", "Water is wet.", message="What is water?"), ExtractiveEngine())

    names = (
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.cost",
    )
    assert [recorded.attribute("chat extractive-1", name) for name in names] == [
        "spanledger",
        "extractive-1",
        4 + 4,
        4,
        0.0,
    ]
