"""What a check found, and what a check is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from app.doctor.patient import Patient

Status = Literal["ok", "warn", "FAIL", "skip"]


@dataclass(frozen=True)
class Finding:
    """What was seen and, unless all is well, what to do about it."""

    status: Status
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """A look at one thing, under a name that stays."""

    name: str
    look: Callable[[Patient], Finding]


def ok(detail: str) -> Finding:
    """As it should be."""
    return Finding("ok", detail)


def warn(detail: str, advice: str) -> Finding:
    """It works, and somebody should look at it."""
    return Finding("warn", detail, advice)


def fail(detail: str, advice: str) -> Finding:
    """It does not work."""
    return Finding("FAIL", detail, advice)


def skip(detail: str, advice: str = "") -> Finding:
    """It could not be looked at; what prevented it has a line of its own, or `advice`."""
    return Finding("skip", detail, advice)
