"""The spool: a write-ahead log of rows, handed to the kernel before the caller goes on, loaded by the sink.

Layout: one directory per process, held by an advisory lock (flock) for as long as the process lives, so that
after a SIGKILL whoever finds the lock free knows the owner is dead and adopts what it left.

    <spool>/<writer>/lock
    <spool>/<writer>/000000000001.v1.executions.open   the segment being written, one COPY text line a row
    <spool>/<writer>/000000000001.v1.steps.open
    <spool>/<writer>/000000000000.v1.executions        a sealed segment: never written again
    <spool>/<writer>/000000000000.v1.steps

A segment is both files of one sequence number (`segment.py`); the steps are renamed first, so sealed executions
mean sealed steps. The callers of `append` copy a line into mapped memory; everything that waits for a disk is done
by the thread that calls `seal`, which also keeps a spare segment ready. Where the disk stalls and the spare is
full, lines wait in a bounded queue in memory: the caller never does.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .adoption import Crash, Observe, adopt
from .fork import in_child
from .home import Home
from .segment import EXECUTIONS, STEPS, TABLES, VERSION, OpenSegment, Segment
from .slots import RUNS, Slots

__all__ = ["EXECUTIONS", "STEPS", "TABLES", "Segment", "Spool", "SpoolError"]

SEGMENT_BYTES = 1 << 20  # of each table; a fuller segment gives way to the next
QUEUE_BYTES = 8 << 20  # of lines that wait in memory for a disk that stalls
_LOOK_SECONDS = 5.0  # between two looks of a process that has no sink
_STALLED_SECONDS = 0.1  # a disk that takes longer is not waited for; a busy interpreter may take as long as half of it
_PATIENCE_SECONDS = 0.005  # with another caller, who may be reserving room on disk


class SpoolError(Exception):
    """The row was not written to the spool; `reason` says why, as a metric label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Spool:
    """This process's end of the spool directory.

    Args:
        directory: Shared by every process of an instance; made with mode 0700 when missing.
        max_bytes: Bound on the whole backlog. Beyond it the newest rows are refused, never the oldest.
        sync: Commit each segment to disk when it is sealed. Without, the kernel does so within about half a minute:
            a killed process loses nothing either way, a machine that loses power does.
        crash, observe: See `adoption.adopt`.

    Raises:
        OSError: The directory cannot be made or written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int = 1 << 30,
        sync: bool = True,
        crash: Crash | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.torn_lines = 0
        self.sealed_lines = 0  # that `ready` has told of
        self.queued_lines = 0  # that had to wait in memory, so far
        self.segments = 0  # sealed, as of the last look
        self.oldest: float | None = None  # when the oldest of them was sealed, in seconds since the epoch
        self.wake: Callable[[], None] = lambda: None  # told that the thread which seals has something to do
        self.runs: Slots | None = None
        self._lines: dict[Segment, int] = {}
        self._known: dict[Segment, tuple[float, int]] = {}  # when it was written, bytes: a sealed one does not change
        self._sync = sync
        self._crash = crash
        self._observe = observe
        self._service: Sequence[str | None] | None = None
        self._closed = True
        self._begin()
        in_child(self._after_fork)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._sealing = threading.Lock()
        self._open: OpenSegment | None = None
        self._spare: OpenSegment | None = None
        self._full: list[OpenSegment] = []
        self._queue: deque[tuple[str, bytes]] = deque()
        self._queued = 0  # bytes in the queue
        self._queueing = threading.RLock()  # for a collection, likewise
        self._holder = 0  # the thread that appends
        self._unsealed = 0  # bytes in open and full segments
        self._keeps_spare = False
        self._disk_since = dict.fromkeys(("seal", "append"), 0.0)  # when a disk operation under way began
        self._settle()
        self._closed = False
        self.look()

    def _settle(self) -> None:
        """Make a home, with slots where runs are recorded."""
        self._home = Home.settle(self.directory)
        self._numbers = itertools.count(1)
        if self._service is not None:
            self.runs = Slots(self.writer / RUNS, self._service)

    @property
    def writer(self) -> Path:
        """The directory of this process."""
        return self._home.path

    def _after_fork(self) -> None:
        """A child is another process: it must not hold its parent's lock, nor write into its segment."""
        if self._closed:
            return
        self._closed = True  # and stays so when the disk does not let it begin: these descriptors are gone
        for segment in (self._open, self._spare, *self._full):
            if segment is not None:
                with contextlib.suppress(OSError, ValueError):  # a thread of the parent was closing it
                    segment.close()
        if self.runs is not None:
            self.runs.close()
            self.runs = None
        with contextlib.suppress(OSError):
            self._home.leave()
        self.queued_lines = self.torn_lines = self.sealed_lines = 0  # the parent's
        self._lines = {}
        self._begin()

    def append(self, table: str, line: bytes) -> None:
        """Write one line (with its newline) to the open segment: handed to the kernel when this returns.

        Raises:
            SpoolError: Nothing was written; reason is `spool_full`, `spool_closed`, `disk_error` or `disk_stalled`.
        """
        if not self._lock.acquire(blocking=False) and not self._acquire():
            self._enqueue(table, line)
            return
        self._holder = threading.get_ident()
        try:
            if self._closed:
                raise SpoolError("spool_closed", "the spool is closed")
            size = len(line)
            if self._backlog + self._unsealed + self._queued + size > self.max_bytes:
                raise SpoolError("spool_full", f"the spool holds its {self.max_bytes} bytes already")
            segment = self._open
            if segment is None or not segment.put(table, line):
                segment = self._next(size)
                if segment is None:
                    self._enqueue(table, line)
                    return
                segment.put(table, line)
            self._unsealed += size
        except OSError as error:
            raise SpoolError("disk_error", f"{self.writer}: {error.strerror or error}") from error
        finally:
            self._holder = 0
            self._lock.release()

    def _acquire(self) -> bool:
        """Take the lock, unless whoever holds it waits for the disk; the rest, however many, are not long.

        Without a disk that stalls no line may be left in memory, where a SIGKILL takes it. Nor is there a use in
        waiting for ourselves: a collection in the midst of an append may end another run.
        """
        while self._holder != threading.get_ident() and not self._is_on_disk("append", _PATIENCE_SECONDS):
            if self._lock.acquire(timeout=_PATIENCE_SECONDS):
                return True
        return False

    def _next(self, size: int) -> OpenSegment | None:
        """Turn to a segment that has room for `size` bytes; None where only a disk that stalls could make it."""
        self._turn()
        if self._spare is not None and size <= self._spare.capacity:
            self._open, self._spare = self._spare, None
        elif self._is_stalled():
            return None
        else:  # lines come faster than spares: better a moment of the disk than a line that a SIGKILL takes
            with self._on_disk("append"):
                self._open = self._make(size)
        self.wake()
        return self._open

    def _make(self, capacity: int = 0) -> OpenSegment:
        self._keeps_spare = True
        segment = Segment(self.writer, next(self._numbers))
        return OpenSegment(segment, max(SEGMENT_BYTES, capacity))

    def _keep_spare(self) -> None:
        if self._spare is None and self._keeps_spare and not self._closed:
            self._spare = self._make()

    def _turn(self) -> None:
        """Put the open segment aside, to be sealed."""
        if self._open is not None:
            self._full.append(self._open)
            self._open = None

    def _enqueue(self, table: str, line: bytes) -> None:
        if self._closed:
            raise SpoolError("spool_closed", "the spool is closed")
        with self._queueing:
            if self._queued + len(line) > QUEUE_BYTES:
                detail = f"the disk stalls, and {self._queued} bytes wait in memory already"
                raise SpoolError("disk_stalled", detail)
            self._queued += len(line)
            self._queue.append((table, line))
            self.queued_lines += 1

    def _is_stalled(self) -> bool:
        """Whether a disk operation has been under way for too long."""
        return any(self._is_on_disk(who, _STALLED_SECONDS) for who in self._disk_since)

    def _is_on_disk(self, who: str, seconds: float) -> bool:
        since = self._disk_since[who]
        return bool(since) and time.monotonic() - since > seconds

    @contextlib.contextmanager
    def _on_disk(self, who: str) -> Iterator[None]:
        self._disk_since[who] = time.monotonic()
        try:
            yield
        finally:
            self._disk_since[who] = 0.0

    def prepare(self, service: Sequence[str | None]) -> None:
        """Have a segment ready before the first line comes, and slots for the runs of this `service` (its columns).

        Raises:
            OSError: The disk has no room for them.
        """
        with self._lock:
            if self._spare is None:
                self._spare = self._make()
            self._service = service
            self.runs = Slots(self.writer / RUNS, service)

    def seal(self) -> None:
        """Commit what was written to disk and hand it to the sink. Nothing to do when that is nothing.

        Raises:
            OSError: The disk refused to commit; the segments are handed on all the same.
        """
        # Who comes second waits, so that what was written before it is handed on when it returns.
        with self._sealing, self._on_disk("seal"):
            if not self.writer.is_dir():
                with self._lock, self._on_disk("append"):
                    self._move()
            if self.runs is not None:
                self.runs.beat(time.time_ns())
            # Before the open segment is put aside: a caller without room has to go to the disk itself.
            with contextlib.suppress(OSError):  # it is tried again below
                self._keep_spare()
            with self._lock:  # writers wait for the swap only, not for the disk
                self._turn()
                full, self._full = self._full, []
            refused: OSError | None = None
            sealed: list[OpenSegment] = []
            try:
                self._unqueue(full)
            except OSError as error:
                refused = error
            for segment in full:
                with contextlib.suppress(OSError):  # callers may need one before the disk is done. Tried again below
                    self._keep_spare()
                self._disk_since["seal"] = time.monotonic()  # each of them is waited for anew
                try:
                    refused = self._seal(segment) or refused
                    sealed.append(segment)
                except OSError as error:  # such as no room for a name: the next time, perhaps
                    refused = error
            size = sum(segment.size() for segment in sealed)
            with self._lock:  # only now: a look meanwhile does not see them, and they are waiting all the same
                self._full += [segment for segment in full if segment not in sealed]
                self._unsealed -= size
                self._backlog += size
            if full:
                _sync_directory(self.writer)
            self._keep_spare()
            if time.monotonic() - self._looked > self._look_pause:
                self.look()  # others fill the same directory, and drain it
            if refused is not None:
                raise refused

    def _unqueue(self, full: list[OpenSegment]) -> None:
        """Write what waits in memory, in further segments."""
        segment: OpenSegment | None = None
        while self._queue:
            table, line = self._queue[0]
            if segment is None or not segment.put(table, line):
                segment = self._make(len(line))
                full.append(segment)
                segment.put(table, line)
            self._queue.popleft()
            with self._queueing:
                self._queued -= len(line)
            with self._lock:
                self._unsealed += len(line)

    def _seal(self, segment: OpenSegment) -> OSError | None:
        """Seal it where it is, or, where somebody deleted it, anew; what refused to commit."""
        try:
            return segment.seal(_datasync if self._sync else _leave_to_the_kernel)
        except FileNotFoundError:  # its lines are in memory still, until they are written elsewhere
            Segment(self.writer, next(self._numbers)).write(segment.lines())
            segment.segment.remove()
            segment.discard()
            return None

    def _move(self) -> None:
        """Make another home: ours was deleted."""
        old, runs = self._home, self.runs
        self._settle()
        old.leave()
        if runs is not None and self.runs is not None:
            self.runs.take_over(runs)

    def ready(self) -> list[Segment]:
        """Sealed segments, oldest first, those of dead processes included."""
        self.torn_lines += adopt(self.directory, self.writer, self._crash, self._observe)
        segments = self.look()
        known = self._lines
        self._lines = {segment: known[segment] if segment in known else segment.lines() for segment in segments}
        self.sealed_lines += sum(count for segment, count in self._lines.items() if segment not in known)
        return segments

    def waiting_lines(self) -> int:
        """Rows that wait for Postgres, of those that `ready` has told of."""
        return sum(count for segment, count in self._lines.items() if segment.path(EXECUTIONS).exists())

    def look(self) -> list[Segment]:
        """Sealed segments, oldest first; how many and how large they are is noted for `append` and the metrics."""
        began = time.monotonic()
        known = self._known
        self._known = {segment: known.get(segment) or segment.stat() for segment in self._segments()}
        segments = sorted(self._known, key=lambda segment: (self._known[segment][0], segment.number))
        self._looked = time.monotonic()
        self._look_pause = max(_LOOK_SECONDS, 20 * (self._looked - began))
        self._backlog = sum(size for _, size in self._known.values())
        self.segments, self.oldest = len(segments), self._known[segments[0]][0] if segments else None
        return segments

    def pending_bytes(self) -> int:
        """Bytes that wait: the sealed backlog as of the last look, and what this process has yet to seal."""
        return self._backlog + self._unsealed + self._queued

    def _segments(self) -> Iterator[Segment]:
        for path in self.directory.glob(f"*/*.{VERSION}.{EXECUTIONS}"):
            yield Segment(path.parent, int(path.name.split(".", 1)[0]))

    def close(self) -> None:
        """Seal and let go of the lock. What was not drained stays on disk and is adopted later."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self.seal()
        finally:
            if self._spare is not None:
                self._spare.discard()
            runs, self.runs = self.runs, None
            if runs is not None:
                runs.close()  # it is left for whoever adopts: with what was counted, and what was open
            self._home.leave()


_datasync = getattr(os, "fdatasync", os.fsync)  # macOS has fsync only


def _leave_to_the_kernel(_: int) -> None:
    """Commit nothing."""


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
