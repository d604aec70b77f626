"""Rejected: the rows set aside in a spool directory, read newest first, and put back once their cause is gone.

rejected.ndjson           what is appended to, a record a line
rejected.1.ndjson         its predecessor
rejected.<random>.ndjson  taken by somebody who is putting rows back, under a lock (flock)
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from . import copytext
from .aside import REJECTED
from .execution import EXECUTION_COLUMNS, STEP_COLUMNS
from .home import Home
from .segment import EXECUTIONS, STEPS, TABLES, VERSION, Segment
from .spool import SEGMENT_BYTES

_COLUMNS = {EXECUTIONS: EXECUTION_COLUMNS, STEPS: STEP_COLUMNS}
_IDENTIFYING = ("trace_id", "span_id", "agent_name", "created_at")
_BLOCK = 1 << 16


class Rejected:
    """The rows set aside below a spool directory. The processes that append to them may go on."""

    def __init__(self, spool_dir: Path) -> None:
        self._directory = spool_dir

    def page(self, limit: int, cursor: str | None = None) -> tuple[list[dict[str, Any]], str | None]:
        """Up to `limit` records after `cursor`, newest first, and the cursor of the page that follows.

        A record has `at` (seconds since the epoch), `table`, `reason`, `detail`, `version`, and of the row `trace_id`,
        `span_id`, `agent_name` and `created_at`, as text, None where the line does not tell. Records that arrive
        meanwhile move no others. A line that is no record is left out.

        Raises:
            ValueError: The cursor is not one of ours, or what it points into was put back.
        """
        found: list[tuple[str, dict[str, Any]]] = []
        for position, line in self._newest_first(cursor):
            record = _parse(line)
            if record is not None:
                if len(found) == limit:
                    return [shown for _, shown in found], found[-1][0]
                found.append((position, _shown(record)))
        return [shown for _, shown in found], None

    def put_back(self, *, reason: str | None = None, dry_run: bool = False) -> Counter[str]:
        """Write rows into the spool again, those with this reason or all, and take them out of the file.

        Whoever drains the spool stores them; what is refused again comes back. They were counted when they ended, and
        are marked as observed. After a crash the rest is found and put back the next time; a row that is in the spool
        twice is stored once. The bound of the spool does not hold for them.

        Args:
            reason: `timestamp`, `data` or `constraint`; None for all.
            dry_run: Only count.

        Returns:
            Rows by what became of them: `put back`; `left` in the file for another reason; left there, too, what is of
            an `other version` or `unreadable`.

        Raises:
            OSError: The spool or the file cannot be written; what was not put back is still in the file.
        """
        counts: Counter[str] = Counter()
        if dry_run:
            counts.update(_verdict(_parse(line), reason) for _, line in self._newest_first(None))
            return counts
        taken = list(self._taken())
        if taken:
            home = Home.settle(self._directory)
            numbers = itertools.count(1)
            try:
                for path, file in taken:
                    with file:
                        # Again, until nothing is new: somebody may have opened the file before it was taken.
                        while self._move(file, reason, counts, (Segment(home.path, number) for number in numbers)):
                            pass
                        path.unlink()
            finally:
                home.leave()
        return counts

    def _move(self, file: IO[bytes], reason: str | None, counts: Counter[str], segments: Iterator[Segment]) -> bool:
        """Put back what is left of a file, and what stays into the current one; whether there was anything."""
        stay, before = [], counts.total()
        lines: dict[str, list[bytes]] = {table: [] for table in TABLES}
        size = 0
        for line in file:
            record = _parse(line)
            verdict = _verdict(record, reason)
            counts[verdict] += 1
            if record is None or verdict != "put back":
                stay.append(line)
                continue
            lines[record["table"]].append((record["line"].removesuffix("\n") + "\n").encode())
            size += len(line)
            if size > SEGMENT_BYTES:
                _write(next(segments), lines)
                lines, size = {table: [] for table in TABLES}, 0
        if size:
            _write(next(segments), lines)
        with (self._directory / REJECTED).open("ab") as rejected:
            rejected.write(b"".join(stay))
            rejected.flush()
            os.fsync(rejected.fileno())
        return counts.total() > before

    def _taken(self) -> Iterator[tuple[Path, IO[bytes]]]:
        """Each file, locked and out of the way of those who append; not what another is putting back now."""
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                file = path.open("rb")
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.close()
                    continue
                taken = path.with_name(f"rejected.{secrets.token_hex(8)}.ndjson")
                path.rename(taken)
                yield taken, file

    def _files(self) -> list[Path]:
        """Newest first."""
        current = self._directory / REJECTED
        older = sorted(self._directory.glob("rejected.*.ndjson"), key=lambda path: path.name)
        return [path for path in (current, *older) if path.exists()]

    def _newest_first(self, cursor: str | None) -> Iterator[tuple[str, bytes]]:
        """Lines with the position of each: the file it is in, wherever that was moved, and its first byte."""
        inode, end = _position(cursor)
        seen: set[int] = set()
        for path in self._files():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                found = os.fstat(file.fileno())
                if inode not in (None, found.st_ino) or found.st_ino in seen:
                    continue
                seen.add(found.st_ino)
                size = found.st_size if inode is None else end
                if size > found.st_size:
                    break
                inode = None
                for start, line in _backwards(file, size):
                    yield f"{found.st_ino:x}-{start:x}", line
        if inode is not None:
            raise ValueError("no such place in what was set aside")


def _write(segment: Segment, lines: dict[str, list[bytes]]) -> None:
    segment.mark_seen()  # before anybody can see it
    segment.write({table: b"".join(lines[table]) for table in TABLES})
    for path in (*map(segment.path, TABLES), segment.directory):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _position(cursor: str | None) -> tuple[int | None, int]:
    if cursor is None:
        return None, 0
    inode, end = cursor.split("-")
    return int(inode, 16), int(end, 16)


def _backwards(file: IO[bytes], end: int) -> Iterator[tuple[int, bytes]]:
    """Lines that end at or before `end`, the last first, each with where it begins."""
    held = b""  # the file's content from `end` on, as far as it was not yielded
    while end or held:
        newline = held.rfind(b"\n", 0, -1) if held else -1
        if newline < 0 and end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            held, end = file.read(end - start) + held, start
        else:
            yield end + newline + 1, held[newline + 1 :]
            held = held[: newline + 1]


def _parse(line: bytes) -> dict[str, Any] | None:
    """A record; None for what is none: a line cut off by a full disk."""
    try:
        record: dict[str, Any] = json.loads(line)
        whole = record["table"] in _COLUMNS and isinstance(record["line"], str) and isinstance(record["at"], float)
        return record if whole else None
    except (ValueError, KeyError, TypeError):
        return None


def _verdict(record: dict[str, Any] | None, reason: str | None) -> str:
    if record is None:
        return "unreadable"
    if reason not in (None, record.get("reason")):
        return "left"
    return "put back" if record.get("version", VERSION) == VERSION else "other version"


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    columns = _COLUMNS[record["table"]]
    line = record["line"].encode()
    known = min(line.count(b"\t") + 1, columns.index("agent_name") + 1)
    row = dict(zip(columns, copytext.values(line, known), strict=False))
    return {
        **{name: record.get(name) for name in ("at", "table", "reason", "detail")},
        "version": record.get("version", VERSION),
        **{name: row.get(name) for name in _IDENTIFYING},
    }
