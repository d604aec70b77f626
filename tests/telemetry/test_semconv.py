from __future__ import annotations

from telemetry import semconv
from telemetry.semconv import Status, TokenType


def test_the_closed_sets() -> None:
    assert [*Status] == ["success", "failure", "timeout", "cancelled", "crashed", "rejected"]
    assert [*TokenType] == ["input", "output", "cache_read", "cache_write", "reasoning"]
    assert {"chat", "text_completion", "generate_content", "embeddings"} == semconv.INFERENCE


def test_no_spelling_means_two_things() -> None:
    aliases = [alias for names in semconv.ALIASES.values() for alias in names]
    assert len(aliases) == len(set(aliases))
    assert not set(aliases) & semconv.ALIASES.keys()


def test_names_of_ours_carry_our_prefix() -> None:
    standard = ("gen_ai.", "user.", "session.", "error.")
    names = {
        value for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str) and "." in value
    }
    ours = {name for name in names if not name.startswith(standard)}
    assert ours == {"spanledger.request.id", "spanledger.execution.status", "spanledger.items."}
