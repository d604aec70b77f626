"""PostgresSink: the thread that loads sealed segments into Postgres, in batches, and forgets them only then."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial

import psycopg
from opentelemetry import context as otel_context
from psycopg import errors

from .aside import set_aside
from .deadline import deadline
from .execution import EXECUTION_COLUMNS
from .fork import in_child
from .guard import Guard
from .loader import Connection, Loader, first_line
from .spool import TABLES, Segment, Spool
from .worker import Worker

BATCH_BYTES = 8 << 20  # a batch is held in memory, and loaded again as a whole when Postgres fails in the midst of it
BATCH_SEGMENTS = 64
PATIENCE_SECONDS = 60.0  # with a Postgres that says nothing …
SLOWEST_BYTES = 16 << 10  # … and a second more for each of these
_QUIET = 20.0  # seconds between two log lines that say the same
_CREATED_AT = EXECUTION_COLUMNS.index("created_at")  # of both tables
_logger = logging.getLogger("spanledger")
# Also a primary that has become a standby: the next connection may find the new one.
_UNAVAILABLE = (psycopg.OperationalError, psycopg.InterfaceError, errors.ReadOnlySqlTransaction)
_NOT_MIGRATED = (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction)


class PostgresSink:
    """One thread that drains the spool.

    `lag` is how long the first row of the newest batch waited from its end to its commit, in seconds; `batches` and
    `batch_seconds` are how many batches were loaded and how long that took in all.

    Args:
        connect: Opens a connection whose role may insert; called again after each failure.
        interval: Seconds between two looks at the spool.
        retention: How old a row may be; no partition is made for an older one.
        ready: What is to be loaded, oldest first; the segments of `spool`, unless given.
    """

    def __init__(
        self,
        spool: Spool,
        connect: Callable[[], Connection],
        guard: Guard,
        *,
        interval: float = 1.0,
        retention: timedelta = timedelta(days=35),
        ready: Callable[[], list[Segment]] | None = None,
    ) -> None:
        self._loader = Loader(partial(set_aside, spool.directory), guard, retention)
        self.stored, self.duplicates, self.rejected = (
            self._loader.stored,
            self._loader.duplicates,
            self._loader.rejected,
        )
        self.batches = 0
        self.batch_seconds = 0.0
        self.lag = 0.0
        self.failures = 0
        self.last_success = 0.0
        self._spool = spool
        self._ready = spool.ready if ready is None else ready
        self._connect = connect
        self._guard = guard
        self._interval = interval
        self._connection: Connection | None = None
        self._inherited: Connection | None = None
        self._backoff = 0.0
        self._warned, self._warned_at = "", 0.0
        self._draining = threading.Lock()
        in_child(self._after_fork)
        self._worker = Worker("spanledger-sink", self._work, interval)

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """Drain once more and stop; False when something is left on disk (it is adopted at the next start)."""
        deadline = time.monotonic() + timeout
        stopped = self._worker.stop(timeout)
        drained = self.drain(max(0.0, deadline - time.monotonic()))
        if stopped:
            self._hang_up()
        return drained

    def _after_fork(self) -> None:
        """A child may not speak on its parent's connection, nor wait for a lock whose holder it does not have."""
        self._inherited, self._connection = self._connection, None
        if self._inherited is not None:
            with contextlib.suppress(psycopg.Error, OSError):  # not close(): that ends the parent's session
                os.close(self._inherited.fileno())
        self._draining = threading.Lock()

    def drain(self, timeout: float = 10.0) -> bool:
        """Seal the spool and load all there is; True when nothing is left. Callable from any thread."""
        deadline = time.monotonic() + timeout
        if not self._draining.acquire(timeout=timeout):
            return False
        suppressed = otel_context.attach(otel_context.set_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            self._seal()
            for batch in _batches(self._ready()):
                if time.monotonic() > deadline:
                    return False
                self._load(batch)
            self._spool.look()
            self.last_success = time.time()
            return True
        except _UNAVAILABLE as error:
            self._failed(f"Postgres is not taking rows, they wait in the spool: {first_line(error)}")
            return False
        except _NOT_MIGRATED as error:
            self._failed(f"rows wait in the spool until `spanledger migrate` has made the schema: {first_line(error)}")
            return False
        except Exception:
            self._guard.report("sink")
            self._failed()
            return False
        finally:
            otel_context.detach(suppressed)
            self._draining.release()

    def _work(self) -> float:
        if self.drain(timeout=3600.0):
            self._backoff = 0.0
            return self._interval
        self._backoff = min(30.0, self._backoff * 2 or 1.0)
        return self._backoff * random.uniform(0.75, 1.25)  # the sinks of an instance do not come back all at once

    def _failed(self, warning: str = "") -> None:
        self.failures += 1
        self._hang_up()
        now = time.monotonic()
        if warning and (warning != self._warned or now - self._warned_at >= _QUIET):
            self._warned, self._warned_at = warning, now
            _logger.warning("%s", warning)

    def _seal(self) -> None:
        try:
            self._spool.seal()
        except OSError:  # the disk would not commit, or is gone: what it still has can be loaded
            self._guard.report("spool")

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def _load(self, batch: list[Segment]) -> None:
        data = {table: [segment.read(table) for segment in batch] for table in TABLES}
        size = sum(len(piece) for pieces in data.values() for piece in pieces)
        started = time.monotonic()
        connection = self._connected()
        with deadline(connection.fileno(), PATIENCE_SECONDS + size / SLOWEST_BYTES):
            self._loader.load(connection, data)
        self.batches += 1
        self.batch_seconds += time.monotonic() - started
        with contextlib.suppress(ValueError):  # it was a bad row
            self.lag = max(0.0, time.time() - _first_end(data))
        for segment in batch:
            segment.remove()

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
            self._connection.autocommit = True
        return self._connection


def _first_end(data: dict[str, list[bytes]]) -> float:
    """When the first row ended, in seconds since the epoch.

    Raises:
        ValueError: It does not say.
    """
    pieces = [next(filter(None, data[table]), b"") for table in TABLES]
    lines = [piece[: piece.find(b"\n")].split(b"\t", _CREATED_AT + 1) for piece in pieces]
    ends = [line[_CREATED_AT].decode() for line in lines if len(line) > _CREATED_AT]
    return min(datetime.fromisoformat(end).timestamp() for end in ends)


def _batches(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Consecutive segments that are loaded together: a commit costs as much for one row as for a thousand."""
    batch: list[Segment] = []
    size = 0
    for segment in segments:
        more = segment.size()
        if batch and (size + more > BATCH_BYTES or len(batch) == BATCH_SEGMENTS):
            yield batch
            batch, size = [], 0
        batch.append(segment)
        size += more
    if batch:
        yield batch
