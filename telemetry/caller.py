"""Who asked: user, session and request id, bound once per request and inherited by everything inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from . import semconv


class Caller(NamedTuple):
    """The ids a request travels with; None where unknown. Never metric labels, never outbound baggage."""

    user_id: str | None = None
    session_id: str | None = None
    request_id: str | None = None

    @classmethod
    def stated(cls, attributes: Mapping[str, Any]) -> Caller:
        """The ids that span attributes state."""
        user_id, session_id = attributes.get(semconv.USER_ID), attributes.get(semconv.SESSION_ID)
        request_id = attributes.get(semconv.REQUEST_ID)
        if user_id is None and session_id is None and request_id is None:
            return NOBODY
        if type(user_id) is type(session_id) is type(request_id) is str:  # nearly always all or none
            return tuple.__new__(cls, (user_id, session_id, request_id))  # past a named tuple's own `__new__`
        return cls(_text(user_id), _text(session_id), _text(request_id))

    def over(self, other: Caller) -> Caller:
        """These ids, each taken from `other` where it is missing here."""
        if other is NOBODY or None not in self:
            return self
        if self == NOBODY:
            return other
        return Caller(*(mine if mine is not None else theirs for mine, theirs in zip(self, other, strict=True)))

    def missing(self, attributes: Mapping[str, object]) -> dict[str, str]:
        """The ids that these span attributes do not carry yet, as attributes."""
        missing = {}
        if self is not NOBODY:
            for name, value in zip(NAMES, self, strict=True):
                if value is not None and name not in attributes:
                    missing[name] = value
        return missing


def _text(value: object) -> str | None:
    return value if value is None or type(value) is str else str(value)


NAMES = (semconv.USER_ID, semconv.SESSION_ID, semconv.REQUEST_ID)
NOBODY = Caller()
_bound: ContextVar[Caller] = ContextVar("spanledger_caller", default=NOBODY)


def bound_caller() -> Caller:
    """The ids bound in this context."""
    return _bound.get()


@contextmanager
def bind(
    *, user_id: str | None = None, session_id: str | None = None, request_id: str | None = None
) -> Iterator[Caller]:
    """Bind ids for the block: every execution, step and span started inside carries them.

    Ids left out keep the value of an enclosing `bind`. They follow `contextvars`, so they reach tasks and
    `asyncio.to_thread`, but never leave the process.
    """
    given = (value if value is None else str(value) for value in (user_id, session_id, request_id))
    caller = Caller(*given).over(_bound.get())
    token = _bound.set(caller)
    try:
        yield caller
    finally:
        try:
            token.var.reset(token)
        except ValueError:  # closed from another context (a generator finalised elsewhere): nothing to undo
            pass
