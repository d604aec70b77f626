"""In flight: the open runs of every living process of a spool directory, and how to end one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from .home import is_alive
from .slots import RUNS, OpenRun, cancel, read


def open_runs(spool_dir: Path) -> list[OpenRun]:
    """What runs now, the oldest first. Runs beyond a process' slots are not in it."""
    runs: list[OpenRun] = []
    for path in _living(spool_dir):
        with contextlib.suppress(OSError):  # it ended just now
            runs += read(path)
    return sorted(runs, key=lambda run: run.started_at)


def cancel_run(spool_dir: Path, trace_id: str, span_id: str) -> bool:
    """Ask the process of a run to cancel it, which takes about a second; False where no process has it open.

    Ids are in lower-case hex.
    """
    for path in _living(spool_dir):
        with contextlib.suppress(OSError):
            if cancel(path, trace_id, span_id):
                return True
    return False


def _living(spool_dir: Path) -> Iterator[Path]:
    for path in spool_dir.glob(f"[!.]*/{RUNS}"):
        if is_alive(path.parent):
            yield path
