"""Tally: what happened, by the number of each execution, in files that no process under test can lose.

A line is in the kernel before its writer goes on, on another disk than the spool. An execution is first `ASKED` for,
then `OPEN`, then `CLOSING`, then `ENDED` with its status; whoever is killed stays at one of the four.
"""

from __future__ import annotations

import os
import time
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple


class Mark(IntEnum):
    """How far an execution got."""

    ASKED = 0
    OPEN = 1
    CLOSING = 2
    ENDED = 3


STALL = "stall"


class Tally:
    """The file of one writer. Times are CLOCK_MONOTONIC, the same in every process of the machine."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, mark: Mark, number: str, status: str = "-", took_ns: int = 0) -> None:
        """An execution got as far as `mark`; when it has ended: how, and what the calls of ours in it took."""
        os.write(self._fd, f"{mark.value} {number} {status} {time.monotonic_ns()} {took_ns}\n".encode())

    def stall(self, took_ns: int) -> None:
        """How much later than it should the event loop came round."""
        os.write(self._fd, f"{STALL} - - {time.monotonic_ns()} {took_ns}\n".encode())

    def close(self) -> None:
        os.close(self._fd)


class Timing(NamedTuple):
    """When something ended, and how long it took, in ns."""

    at: int
    took: int


class Told(NamedTuple):
    """What all tallies of a directory say: how far each number got, with which status; timings."""

    marks: dict[str, Mark]
    statuses: dict[str, str]
    calls: list[Timing]
    stalls: list[Timing]

    @classmethod
    def of(cls, directory: Path) -> Told:
        told = cls({}, {}, [], [])
        for path in directory.iterdir():
            for line in path.read_text().splitlines():
                what, number, status, at, took = line.split()
                if what == STALL:
                    told.stalls.append(Timing(int(at), int(took)))
                    continue
                mark = told.marks[number] = Mark(int(what))
                if mark is Mark.ENDED:
                    told.statuses[number] = status
                    told.calls.append(Timing(int(at), int(took)))
                elif mark is Mark.CLOSING:
                    told.statuses[number] = status
        return told
