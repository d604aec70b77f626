"""The names we read and write: OpenTelemetry GenAI semantic conventions, newest generation, and ours.

The conventions' GenAI part moved to its own repository in semconv 1.42 and is still "Development", so the
names live here instead of coming from `opentelemetry.semconv._incubating`, which is frozen.
Source: https://github.com/open-telemetry/semantic-conventions-genai
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

OPERATION = "gen_ai.operation.name"
AGENT_NAME = "gen_ai.agent.name"
AGENT_VERSION = "gen_ai.agent.version"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds
TOOL_NAME = "gen_ai.tool.name"
TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
TOOL_RESULT = "gen_ai.tool.call.result"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"

# Subsets are included in totals: input includes cache, output includes reasoning.
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS = "gen_ai.usage.cache_write.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
USAGE_COST = "gen_ai.usage.cost"  # USD; not in the conventions, but what senders write (OpenLIT and others)

ERROR_TYPE = "error.type"
USER_ID = "user.id"
SESSION_ID = "session.id"

# What the conventions lack carries our prefix.
REQUEST_ID = "spanledger.request.id"
STATUS = "spanledger.execution.status"
ITEMS_PREFIX = "spanledger.items."

# Spellings of earlier generations, canonical name -> what else is accepted, first present wins.
ALIASES: dict[str, tuple[str, ...]] = {
    PROVIDER: ("gen_ai.system",),
    INPUT_TOKENS: ("gen_ai.usage.prompt_tokens",),
    OUTPUT_TOKENS: ("gen_ai.usage.completion_tokens",),
    CACHE_READ_TOKENS: ("gen_ai.usage.cache_read_input_tokens",),
    CACHE_WRITE_TOKENS: (
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
        "gen_ai.usage.cache_write_input_tokens",
    ),
    REASONING_TOKENS: ("gen_ai.usage.reasoning_tokens",),
}

INVOKE_AGENT = "invoke_agent"
EXECUTE_TOOL = "execute_tool"
INFERENCE = frozenset({"chat", "text_completion", "generate_content", "embeddings"})
"""The operations that consume tokens: tokens and cost are read from these spans only."""


UNATTRIBUTED = "_unattributed"
"""The agent of what no agent claims."""


class Status(StrEnum):
    """How an execution ended. Closed: every value is exported at 0 as soon as an agent is known."""

    SUCCESS = "success"
    FAILURE = "failure"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    CRASHED = "crashed"
    REJECTED = "rejected"


class TokenType(StrEnum):
    """Classes of tokens. Not additive: `input` includes the cache classes, `output` includes reasoning."""

    INPUT = "input"
    OUTPUT = "output"
    CACHE_READ = "cache_read"
    CACHE_WRITE = "cache_write"
    REASONING = "reasoning"


def first(attributes: Mapping[str, Any], name: str) -> Any:
    """An attribute, whichever generation's name its sender used; None when it is not there."""
    value = attributes.get(name)
    return _alias(attributes, name) if value is None and name in ALIASES else value


def string(attributes: Mapping[str, Any], name: str) -> str | None:
    """An attribute as text, whatever its sender made it."""
    value = attributes.get(name)
    if value is None and name in ALIASES:  # as `first` does it, whose call would cost as much as the rest
        value = _alias(attributes, name)
    return value if value is None or type(value) is str else str(value)


def _alias(attributes: Mapping[str, Any], name: str) -> Any:
    for alias in ALIASES[name]:
        value = attributes.get(alias)
        if value is not None:
            return value
    return None
