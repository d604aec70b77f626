"""The spool: a write-ahead log of rows, handed to the kernel before the caller goes on, loaded by the sink.

Layout: one directory per process, held by an advisory lock (flock) for as long as the process lives, so that
after a SIGKILL whoever finds the lock free knows the owner is dead and adopts what it left.

    <spool>/<writer>/lock
    <spool>/<writer>/000000000001.v1.executions.open   the segment being written, one COPY text line a row
    <spool>/<writer>/000000000001.v1.steps.open
    <spool>/<writer>/000000000000.v1.executions        a sealed segment: never written again
    <spool>/<writer>/000000000000.v1.steps

A segment is both files of one sequence number; the steps are renamed first, so sealed executions mean sealed
steps. A line without its newline is torn (the process died inside the write) and is cut at adoption. The `v1`
is the version of the lines, so that a later reader can tell them from its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .fork import in_child

VERSION = "v1"
SEGMENT_BYTES = 8 << 20  # a fuller segment is closed early, so that whoever loads it may hold it in memory
REJECTED = "rejected.ndjson"
REJECTED_BYTES = 64 << 20  # a fuller file gives way to a new one; one predecessor is kept
EXECUTIONS, STEPS = TABLES = ("executions", "steps")
_OPEN = ".open"
_LOOK_SECONDS = 5.0  # between two looks at a full spool that others may be draining


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

    def written_at(self) -> float:
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
        self._sealing = threading.Lock()
        self._closed = True
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._begin()
        in_child(self._after_fork)

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
        self._full_bytes = 0
        self._closed = False
        self.look()

    def _after_fork(self) -> None:
        """A child is another process: it must not hold its parent's lock, nor write into its segment."""
        if self._closed:
            return
        self._lock = threading.Lock()
        self._sealing = threading.Lock()
        self._closed = True  # and stays so when the disk does not let it begin: these descriptors are gone
        for fd in (self._lock_fd, *self._fds.values(), *(fd for _, fds in self._full for fd in fds.values())):
            with contextlib.suppress(OSError):  # a thread of the parent was closing it
                os.close(fd)
        self._begin()

    def append(self, table: str, line: bytes) -> None:
        """Write one line (with its newline) to the open segment: handed to the kernel when this returns.

        Raises:
            SpoolError: Nothing was written; reason is `spool_full`, `spool_closed` or `disk_error`.
        """
        with self._lock:
            if self._closed:
                raise SpoolError("spool_closed", "the spool is closed")
            if self._is_full(len(line)):
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

    def _is_full(self, size: int) -> bool:
        if self.pending_bytes() + size <= self.max_bytes:
            return False
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return True
        self.look()
        return self.pending_bytes() + size > self.max_bytes

    def _open(self) -> None:
        self._number += 1
        segment = Segment(self.writer, self._number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        fds: dict[str, int] = {}
        try:
            for table in TABLES:
                fds[table] = os.open(f"{segment.path(table)}{_OPEN}", flags, 0o600)
        except OSError:
            for table, fd in fds.items():  # half a segment would never be sealed
                os.close(fd)
                os.unlink(f"{segment.path(table)}{_OPEN}")
            raise
        self._fds = fds

    def _turn(self) -> None:
        """Put the open segment aside, to be sealed; the next line opens another."""
        if self._fds:
            self._full.append((self._number, self._fds))
            self._full_bytes += sum(self._sizes.values())
            self._fds, self._sizes = {}, dict.fromkeys(TABLES, 0)

    def seal(self) -> None:
        """Commit what was written to disk and hand it to the sink. Nothing to do when that is nothing.

        Raises:
            OSError: The disk refused to commit; the segments are handed on all the same.
        """
        with self._sealing:  # who comes second waits, so that what was written before it is handed on when it returns
            with self._lock:  # writers wait for the swap only, not for the disk
                self._turn()
                full, self._full = self._full, []
                size = self._full_bytes
            refused: OSError | None = None
            for number, fds in full:
                try:
                    self._seal(Segment(self.writer, number), fds)
                except OSError as error:
                    refused = error
            with self._lock:  # only now: a look meanwhile does not see them, and they are waiting all the same
                self._full_bytes -= size
                self._backlog += size
            if full:
                _sync_directory(self.writer)
            if refused is not None:
                raise refused

    def _seal(self, segment: Segment, fds: dict[str, int]) -> None:
        try:
            for fd in fds.values():
                _datasync(fd)
        finally:  # even when the disk refused: what the kernel holds can still be loaded
            for fd in fds.values():
                os.close(fd)
            for table in (STEPS, EXECUTIONS):
                path = segment.path(table)
                os.rename(f"{path}{_OPEN}", path)

    def reject(self, table: str, line: bytes, reason: str, detail: str) -> None:
        """Set a row aside that Postgres will not take; it stays readable in `rejected.ndjson`.

        Raises:
            OSError: The disk refused.
        """
        record = {"at": time.time(), "table": table, "reason": reason, "detail": detail}
        text = (json.dumps({**record, "line": line.decode("utf-8", "replace")}) + "\n").encode()
        path = self.directory / REJECTED
        if _size(path) > REJECTED_BYTES:
            with contextlib.suppress(FileNotFoundError):  # another process was first
                path.replace(path.with_suffix(".1.ndjson"))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        finally:
            os.close(fd)

    def ready(self) -> list[Segment]:
        """Sealed segments, oldest first, those of dead processes included."""
        self._adopt()
        return self.look()

    def look(self) -> list[Segment]:
        """Sealed segments, oldest first; how many and how large they are is noted for `append` and the metrics."""
        segments = sorted(self._segments(), key=lambda segment: (segment.written_at(), segment.number))
        self._looked = time.monotonic()
        self._backlog = sum(segment.size() for segment in segments)
        self.segments, self.oldest = len(segments), segments[0].written_at() if segments else None
        return segments

    def pending_bytes(self) -> int:
        """Bytes that wait: the sealed backlog as of the last look, and what this process has yet to seal."""
        return self._backlog + self._full_bytes + sum(self._sizes.values())

    def _segments(self) -> Iterator[Segment]:
        for path in self.directory.glob(f"*/*.{VERSION}.{EXECUTIONS}"):
            yield Segment(path.parent, int(path.name.split(".", 1)[0]))

    def _adopt(self) -> None:
        """Seal what dead processes left open, and remove their directories once they are empty."""
        for writer in self.directory.iterdir():
            if writer != self.writer and writer.is_dir():
                # Another process adopted it just now, or it belongs to another user: no reason to hold up the rest.
                with contextlib.suppress(OSError):
                    self._adopt_from(writer)

    def _adopt_from(self, writer: Path) -> None:
        fd = None if _is_beginning(writer) else _lock(writer / "lock")
        if fd is None:
            return
        try:
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
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self.seal()
        finally:
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
