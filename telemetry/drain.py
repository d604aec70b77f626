"""Drain: the sink alone, beside processes that only spool, with their metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, CollectorRegistry

from .crashed import crashed_line
from .guard import Guard
from .metrics import Metrics
from .pipeline import RunsCollector, SpoolCollector
from .replay import Replay
from .spool import Spool

if TYPE_CHECKING:
    import psycopg


class Drain:
    """Stores what other processes write into a spool directory, and observes in `registry` what it stored.

    For agents that call `configure` without `connect`: cron jobs and workers that are gone before anybody scrapes
    them, and processes that must not reach Postgres. Rows that were stored before are not observed again; the
    counters begin at 0 with this object. Whoever scrapes the agents' own processes as well counts everything twice.

    Args:
        spool_dir: The agents' `spool_dir`; made when missing.
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
        guard = Guard()
        replay = Replay(Metrics(self.registry, error_types=error_types), guard)
        self.spool = Spool(spool_dir, max_bytes=spool_max_bytes, crash=crashed_line)
        self.sink = PostgresSink(
            self.spool, connect, guard, interval=drain_interval, retention=retention, observe=replay.observe
        )
        self.registry.register(RunsCollector(self.spool))
        self.registry.register(SpoolCollector(self.spool, self.sink, guard, [self.sink.rejected]))
        self.sink.start()

    def shutdown(self, timeout: float = 10.0) -> bool:
        """Store what is there and stop; False when rows are left on disk for the next start."""
        drained = self.sink.stop(timeout)
        self.spool.close()
        return drained
