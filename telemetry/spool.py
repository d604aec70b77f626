"""The spool: a write-ahead log of rows, on disk before the caller goes on, loaded into Postgres by the sink.

Layout: one directory per process, held by an advisory lock (flock) for as long as the process lives, so that
after a SIGKILL whoever finds the lock free knows the owner is dead and adopts what it left.

    <spool>/<writer>/lock
    <spool>/<writer>/000000000001.v1.executions.open   the segment being written, one COPY text line a row
    <spool>/<writer>/000000000001.v1.steps.open
    <spool>/<writer>/000000000000.v1.executions        a sealed segment: never written again
    <spool>/<writer>/000000000000.v1.steps

A segment is both files of one sequence number; the steps are renamed first, so sealed executions mean sealed
steps. A line without its newline is torn (the process died inside the write) and is cut at adoption. The `v1`
is the version of the lines: a reader knows its own and its neighbours'.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERSION = "v1"
SEGMENT_BYTES = 8 << 20  # a fuller segment is closed early, so that whoever loads it may hold it in memory
REJECTED = "rejected.ndjson"
EXECUTIONS, STEPS = TABLES = ("executions", "steps")
_OPEN = ".open"


class SpoolError(Exception):
    """The row was not written to the spool; `reason` says why, as a metric label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Segment:
    """A sealed pair of files, ready to be loaded."""

    directory: Path
    number: int

    def path(self, table: str) -> Path:
        return self.directory / f"{self.number:012d}.{VERSION}.{table}"

    def read(self, table: str) -> bytes:
        """The lines of one table; empty when the segment has none, or was removed by another drainer."""
        try:
            return self.path(table).read_bytes()
        except FileNotFoundError:
            return b""

    def size(self) -> int:
        """Bytes on disk."""
        return sum(_size(self.path(table)) for table in TABLES)

    def sealed_at(self) -> float:
        """When it was last written, in seconds since the epoch."""
        try:
            return self.path(EXECUTIONS).stat().st_mtime
        except FileNotFoundError:
            return time.time()

    def remove(self) -> None:
        """Forget it: its rows are stored. Executions go last, for they are what marks a segment sealed."""
        for table in (STEPS, EXECUTIONS):
            self.path(table).unlink(missing_ok=True)


class Spool:
    """This process's end of the spool directory.

    Args:
        directory: Shared by every process of an instance; made with mode 0700 when missing.
        max_bytes: Bound on the whole backlog. Beyond it the newest rows are refused, never the oldest.

    Raises:
        OSError: The directory cannot be made or written.
    """

    def __init__(self, directory: Path, *, max_bytes: int = 1 << 30) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.torn_lines = 0
        self.segments = 0  # sealed, as of the last look
        self.oldest: float | None = None  # when the oldest of them was sealed, in seconds since the epoch
        self._lock = threading.Lock()
        self._closed = False
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._begin()
        forked = weakref.WeakMethod(self._after_fork)
        os.register_at_fork(after_in_child=lambda: (spool := forked()) and spool())

    def _begin(self) -> None:
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        hidden = self.directory / f".{name}"  # nobody adopts it before it is locked
        hidden.mkdir(mode=0o700)
        lock = _lock(hidden / "lock")
        if lock is None:
            raise OSError(f"{hidden} was taken by another process")
        self._lock_fd = lock
        self.writer = hidden.rename(self.directory / name)
        self._number = 0
        self._fds: dict[str, int] = {}
        self._sizes = dict.fromkeys(TABLES, 0)
        self._full: list[tuple[int, dict[str, int]]] = []
        self._backlog = sum(segment.size() for segment in self._segments())

    def _after_fork(self) -> None:
        """A child is another process: it must not hold its parent's lock, nor write into its segment."""
        if self._closed:
            return
        for fd in (self._lock_fd, *self._fds.values(), *(fd for _, fds in self._full for fd in fds.values())):
            os.close(fd)
        self._lock = threading.Lock()
        self._begin()

    def append(self, table: str, line: bytes) -> None:
        """Write one line (with its newline) to the open segment: handed to the kernel when this returns.

        Raises:
            SpoolError: Nothing was written; reason is `spool_full`, `spool_closed` or `disk_error`.
        """
        with self._lock:
            if self._closed:
                raise SpoolError("spool_closed", "the spool is closed")
            if self.pending_bytes() + len(line) > self.max_bytes:
                raise SpoolError("spool_full", f"the spool holds its {self.max_bytes} bytes already")
            try:
                fd = self._fds.get(table)
                if fd is None:
                    self._open()
                    fd = self._fds[table]
                written = os.write(fd, line)
                if written == len(line):
                    self._sizes[table] += written
                    if self._sizes[table] > SEGMENT_BYTES:
                        self._turn()
                    return
                os.ftruncate(fd, self._sizes[table])  # a short write: the disk is full
                raise SpoolError("disk_error", "the disk took only a part of the line")
            except OSError as error:
                raise SpoolError("disk_error", f"{self.writer}: {error.strerror or error}") from error

    def _open(self) -> None:
        self._number += 1
        segment = Segment(self.writer, self._number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        for table in TABLES:
            self._fds[table] = os.open(f"{segment.path(table)}{_OPEN}", flags, 0o600)

    def _turn(self) -> None:
        """Put the open segment aside, to be sealed; the next line opens another."""
        if self._fds:
            self._full.append((self._number, self._fds))
            self._backlog += sum(self._sizes.values())
            self._fds, self._sizes = {}, dict.fromkeys(TABLES, 0)

    def seal(self) -> None:
        """Commit what was written to disk and hand it to the sink. Nothing to do when that is nothing.

        Raises:
            OSError: The disk refused to commit; the segments are handed on all the same.
        """
        with self._lock:  # writers wait for the swap only, not for the disk
            self._turn()
            full, self._full = self._full, []
        for number, fds in full:
            segment = Segment(self.writer, number)
            try:
                for fd in fds.values():
                    _datasync(fd)
            finally:  # even when the disk refused: what the kernel holds can still be loaded
                for fd in fds.values():
                    os.close(fd)
                for table in (STEPS, EXECUTIONS):
                    path = segment.path(table)
                    os.rename(f"{path}{_OPEN}", path)
        if full:
            _sync_directory(self.writer)

    def reject(self, table: str, line: bytes, reason: str, detail: str) -> None:
        """Set a row aside that Postgres will not take; it stays readable in `rejected.ndjson`.

        Raises:
            OSError: The disk refused.
        """
        record = {"at": time.time(), "table": table, "reason": reason, "detail": detail}
        text = json.dumps({**record, "line": line.decode("utf-8", "replace")}) + "\n"
        fd = os.open(self.directory / REJECTED, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def ready(self) -> list[Segment]:
        """Sealed segments, oldest first, those of dead processes included."""
        self._adopt()
        segments = sorted(self._segments(), key=lambda segment: (segment.sealed_at(), segment.number))
        self._backlog = sum(segment.size() for segment in segments)
        self.segments, self.oldest = len(segments), segments[0].sealed_at() if segments else None
        return segments

    def pending_bytes(self) -> int:
        """Bytes that wait: the sealed backlog as of the last look, and the open segment."""
        return self._backlog + sum(self._sizes.values())

    def _segments(self) -> Iterator[Segment]:
        for path in self.directory.glob(f"*/*.{VERSION}.{EXECUTIONS}"):
            yield Segment(path.parent, int(path.name.split(".", 1)[0]))

    def _adopt(self) -> None:
        """Seal what dead processes left open, and remove their directories once they are empty."""
        for writer in self.directory.iterdir():
            if writer == self.writer or not writer.is_dir():
                continue
            fd = None if _is_beginning(writer) else _lock(writer / "lock")
            if fd is None:
                continue
            try:
                with contextlib.suppress(FileNotFoundError):  # another process adopted it just now
                    self._seal_left(writer)
                    if [path.name for path in writer.iterdir()] == ["lock"]:
                        (writer / "lock").unlink()
                        writer.rmdir()
            finally:
                os.close(fd)

    def _seal_left(self, writer: Path) -> None:
        for table in (STEPS, EXECUTIONS):
            for path in writer.glob(f"*.{table}{_OPEN}"):
                size, whole = path.stat().st_size, _whole_lines(path)
                if whole < size:
                    os.truncate(path, whole)
                    self.torn_lines += 1
                os.rename(path, path.with_suffix(""))

    def close(self) -> None:
        """Seal and let go of the lock. What was not drained stays on disk and is adopted later."""
        try:
            self.seal()
        finally:
            with self._lock:
                if not self._closed:
                    self._closed = True
                    os.close(self._lock_fd)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None where a living process holds it or the directory is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _is_beginning(writer: Path) -> bool:
    """Whether a process may still be about to lock this directory."""
    return writer.name.startswith(".") and time.time() - writer.stat().st_mtime < 60


def _whole_lines(path: Path) -> int:
    """Length of the file up to and with its last newline."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


_datasync = getattr(os, "fdatasync", os.fsync)  # macOS has fsync only


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
