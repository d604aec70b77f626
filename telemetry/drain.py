"""Drain: the sink alone, beside processes that only spool, with their metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, CollectorRegistry

from .counts import Counts
from .crashed import crashed_line
from .execution import Service
from .guard import Guard
from .ledger import Ledger
from .metrics import Metrics
from .pipeline import RunsCollector, SpoolCollector
from .replay import Replay
from .segment import Segment
from .slots import RUNS, read_counts
from .spool import TABLES, Spool
from .worker import Worker

if TYPE_CHECKING:
    import psycopg


class Drain:
    """Stores what other processes write into a spool directory, and observes it in `registry`.

    For agents that call `configure` without `connect`: the workers of a server, cron jobs that are gone before anybody
    scrapes them, processes that must not reach Postgres. A row is observed once, within about two seconds, whether
    Postgres is there or not; the counters begin at 0 with this object. Whoever scrapes the agents' own processes as
    well counts everything twice.

    Args:
        spool_dir: The agents' `spool_dir`; made when missing. One drain at a time.
        connect: Opens a psycopg connection whose role may insert.
        registry: Where metrics are registered; default: the process' own.
        spool_max_bytes: What the gauge of the capacity says; the agents have the bound.
        retention: How old a row may be.
        drain_interval: Seconds between two looks at the spool.
        error_types: Names of the agents' own exceptions that may be a metric's `error_type`; others are `_OTHER`.

    Raises:
        ValueError: The registry has our metrics already.
        OSError: The spool directory cannot be made or written.
    """

    def __init__(
        self,
        spool_dir: Path,
        connect: Callable[[], psycopg.Connection[Any]],
        *,
        registry: CollectorRegistry | None = None,
        spool_max_bytes: int = 1 << 30,
        retention: timedelta = timedelta(days=35),
        drain_interval: float = 1.0,
        error_types: Iterable[str] = (),
    ) -> None:
        from .sink import PostgresSink  # psycopg is an extra

        self.registry = REGISTRY if registry is None else registry
        self._guard = Guard()
        self._metrics = Metrics(self.registry, error_types=error_types)
        self._replay = Replay(self._metrics, self._guard)
        self._observing = threading.Lock()
        self._seen: set[Segment] = set()
        self._living: dict[str, Counts] = {}
        self._dead = Counts.none()
        self._interval = drain_interval
        self.spool = Spool(spool_dir, max_bytes=spool_max_bytes, crash=crashed_line)
        self.sink = PostgresSink(
            self.spool, connect, self._guard, interval=drain_interval, retention=retention, ready=self.ready
        )
        self.registry.register(RunsCollector(self.spool, self._metrics))
        self.registry.register(SpoolCollector(self.spool, self.sink, self.counts))
        self._observer = Worker("spanledger-observe", self._observe, drain_interval)
        self._observer.start()
        self.sink.start()

    def ready(self) -> list[Segment]:
        """Sealed segments, oldest first; the rows of new ones are observed before."""
        with self._observing:
            self._look_at_processes()  # before one that is dead is adopted
            segments = self.spool.ready()
            for segment in segments:
                # Noted before it is done: a drain that is killed in between counts too little, as its last scrape does.
                if segment not in self._seen and _mark(segment):
                    for table in TABLES:
                        self._replay.observe(table, segment.read(table).splitlines(keepends=True))
            self._seen = set(segments)
            return segments

    def counts(self) -> Counts:
        """What went wrong in all processes together, the dead ones included."""
        with self._observing:
            self._look_at_processes()
            return Counts.total([self._dead, *self._living.values(), Counts.none()._replace(errors=self._guard.counts)])

    def ledger(self) -> Ledger:
        """What came in, where it is now, and whether that adds up: exact for processes that began after this one."""
        return Ledger.of(self.counts(), self.spool, self.sink)

    def _look_at_processes(self) -> None:
        found = {path.parent.name: path for path in self.spool.directory.glob(f"[!.]*/{RUNS}")}
        for name, path in found.items():
            with suppress(OSError, ValueError):  # just ended, or just writing it: what it said before holds
                counts = self._living[name] = Counts.from_json(read_counts(path))
                for service, environment, agent in counts.agents:
                    self._metrics.know_agent(Service(service, None, None, environment or None, None), agent)
        for name in self._living.keys() - found.keys():
            self._dead = Counts.total([self._dead, self._living.pop(name).ended()])

    def _observe(self) -> float:
        try:
            self.ready()
        except Exception:
            self._guard.report("metrics")
        return self._interval

    def shutdown(self, timeout: float = 10.0) -> bool:
        """Store what is there and stop; False when rows are left on disk for the next start."""
        self._observer.stop(timeout)
        drained = self.sink.stop(timeout)
        self.spool.close()
        return drained


def _mark(segment: Segment) -> bool:
    """Whether it is ours to observe. A disk too full for the note must not hold up what would empty it."""
    try:
        return segment.mark_seen()
    except OSError:
        return True
