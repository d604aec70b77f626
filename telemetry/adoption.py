"""Adoption: what dead processes left in a spool directory is sealed, and the runs they did not end are recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from .home import abandoned
from .segment import EXECUTIONS, OPEN, SEEN, STEPS, VERSION, Segment
from .slots import CANCEL, RUNS, OpenRun, read

_LAST_NUMBER = 10**12 - 1  # of the segment of crashed runs: none that was there before, loaded or not, had it
Crash = Callable[[OpenRun], bytes]
Observe = Callable[[str, list[bytes]], None]


def adopt(spool_dir: Path, own: Path, crash: Crash | None, observe: Observe | None) -> int:
    """Adopt from every dead process but `own`; how many lines were torn.

    Args:
        crash: The line of a run that was open when its process died. Without, such runs are left for others to adopt.
        observe: Told of those lines, once, when they are written.
    """
    torn = 0
    for home in abandoned(spool_dir, own):
        with contextlib.suppress(OSError):  # another process was faster, or it belongs to another user
            _tidy(home)
            opened = _numbers(home, OPEN)
            for number in opened:
                torn += Segment(home, number).adopt()
            if crash is not None:
                _record_crashed(home, opened, crash, observe)
    return torn


def _tidy(home: Path) -> None:
    """Remove what means nothing any more: half a segment of crashed runs, wishes to cancel, notes without segment."""
    for path in (*home.glob(f"{_LAST_NUMBER}.*{OPEN}"), *home.glob(f"{CANCEL}*")):
        path.unlink()
    for path in home.glob(f"*.{SEEN}"):
        if not path.with_suffix(f".{EXECUTIONS}").exists():
            path.unlink()


def _record_crashed(home: Path, opened: list[int], crash: Crash, observe: Observe | None) -> None:
    numbers = _numbers(home, EXECUTIONS)
    # The row of a run comes just before its slot is given back: killed in between, it did end. It is in a segment
    # that was open, whose number need not be the last, or one that was just sealed.
    last = {*opened, *numbers[-3:]} - {_LAST_NUMBER}
    ended = b"".join(Segment(home, number).read(EXECUTIONS) for number in last)
    lines = [crash(run) for run in read(home / RUNS) if f"{run.trace_id}\t{run.span_id}\t".encode() not in ended]
    if lines:
        Segment(home, _LAST_NUMBER).write({EXECUTIONS: b"".join(lines), STEPS: b""})
    (home / RUNS).unlink(missing_ok=True)
    if lines and observe is not None:
        observe(EXECUTIONS, lines)


def _numbers(home: Path, ending: str) -> list[int]:
    return sorted({int(path.name.split(".", 1)[0]) for path in home.glob(f"*.{VERSION}.*{ending}")})
