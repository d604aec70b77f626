"""Why an agent could not do its work, in words fit for the person who asked.

    AgentError
    ├── EmptyContent             nothing to work on
    ├── InvalidOutput            the model's answer is unusable
    ├── DeadlineExceeded         the agent's own time limit   (a TimeoutError)
    └── ProviderError            the model provider's side
        ├── ProviderRefused      HTTP 4xx: key, model or request
        ├── ProviderRateLimited  HTTP 429
        ├── ProviderUnavailable  HTTP 5xx, dropped connection
        └── ProviderTimeout      no answer in time            (a TimeoutError)

Without an argument the message is the docstring. The monitor records `timeout` for the two that are a
TimeoutError and `failure` for the others; `error_type` is the name of the class.
"""

from __future__ import annotations

from collections.abc import Iterator


class AgentError(Exception):
    """The agent could not do its work."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class EmptyContent(AgentError):
    """There is nothing to work on: send the text to study in options.content."""


class InvalidOutput(AgentError):
    """The model's answer could not be used. Try again, or ask for less."""


class DeadlineExceeded(AgentError, TimeoutError):
    """The agent took longer than it may. Try again, or send a shorter text."""


class ProviderError(AgentError):
    """The model provider could not be used."""


class ProviderRefused(ProviderError):
    """The model provider refused the request. Check OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL."""


class ProviderRateLimited(ProviderError):
    """The model provider is limiting our requests (HTTP 429). Try again in a minute."""


class ProviderUnavailable(ProviderError):
    """The model provider failed or cut the connection. Try again in a minute."""


class ProviderTimeout(ProviderError, TimeoutError):
    """The model provider did not answer in time. Try again, or send a shorter text."""


def names(error: type[AgentError] = AgentError) -> Iterator[str]:
    """The names of the whole tree: what may be a metric's `error_type`."""
    yield error.__name__
    for kind in error.__subclasses__():
        yield from names(kind)
