"""What an agent feels while Postgres is away, the disk is slow, or both.

One process with an event loop, a sink on an embedded server, and a coroutine that runs an execution of 1 KB in and
1 KB out every 5 ms. `call` is how long such an execution takes; `stall` is how much later than asked a coroutine that
sleeps 1 ms comes back, which is what the machine, the sink's thread and our disk cost everybody else. While Postgres
is away every connection is refused and the open one is gone. The slow disk takes 300 ms to commit anything and to
reserve room, as the spool sees it. The four conditions take turns of three seconds; `bare` is a bare span instead of
the execution, with everything else as it is. A ratio compares with the turn of the same round.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from prometheus_client import CollectorRegistry

from app.database import Database
from bench.call import IDS, PAYLOADS
from bench.figure import Figure, ratios
from bench.postgres import embedded
from telemetry import AgentMonitor, AlwaysRecord, configure
from telemetry import spool as spool_module
from telemetry.segment import OpenSegment

TURN_SECONDS = 3.0
ROUNDS = 7
EVERY_SECONDS = 0.005
SLOW_SECONDS = 0.3
Call = Callable[[Any, Any], None]


class Turn:
    """What one turn saw: seconds of each call, and of each stall."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.stalls: list[float] = []

    async def run(self, call: Call) -> None:
        """Call and beat side by side."""
        end = time.perf_counter() + TURN_SECONDS
        await asyncio.gather(self._call(call, end), self._beat(end))

    async def _call(self, call: Call, end: float) -> None:
        number = 0
        while (begin := time.perf_counter()) < end:
            call(*PAYLOADS[number % len(PAYLOADS)])
            self.calls.append(time.perf_counter() - begin)
            number += 1
            await asyncio.sleep(EVERY_SECONDS)

    async def _beat(self, end: float) -> None:
        while (begin := time.perf_counter()) < end:
            await asyncio.sleep(0.001)
            self.stalls.append(time.perf_counter() - begin - 0.001)


class World:
    """Postgres and the disk, which may be away and slow."""

    def __init__(self, database: Database) -> None:
        self.away = False
        self.slow = False
        self._database = database
        self._commit, self._make = spool_module._datasync, OpenSegment
        self._open: list[psycopg.Connection[Any]] = []
        spool_module._datasync = self._slow_commit
        vars(spool_module)["OpenSegment"] = self._slow_make

    def connect(self) -> psycopg.Connection[Any]:
        """As the sink does."""
        if self.away:
            raise psycopg.OperationalError("away")
        self._open.append(self._database.sink_connection())
        return self._open[-1]

    def change(self, *, away: bool, slow: bool) -> None:
        """Let what is open break, or answer again."""
        self.away, self.slow = away, slow
        while away and self._open:
            self._open.pop().close()

    def _slow_commit(self, fd: int) -> None:
        self._wait()
        self._commit(fd)

    def _slow_make(self, *arguments: Any) -> Any:
        self._wait()
        return self._make(*arguments)

    def _wait(self) -> None:
        if self.slow:
            time.sleep(SLOW_SECONDS)


def run() -> Iterator[Figure]:
    """All conditions against the first."""
    conditions = {
        "all well": (False, False),
        "Postgres away": (True, False),
        "disk slow": (False, True),
        "both": (True, True),
    }
    seen: dict[str, list[Turn]] = {name: [] for name in ("bare", *conditions)}
    with embedded() as url, tempfile.TemporaryDirectory() as directory:
        database = Database(url)
        database.migrate()
        database.ensure_partitions()
        world = World(database)
        provider = TracerProvider(sampler=AlwaysRecord(DEFAULT_ON))
        telemetry = configure(
            spool_dir=Path(directory), connect=world.connect, tracer_provider=provider, registry=CollectorRegistry()
        )
        monitor, tracer = AgentMonitor(), TracerProvider().get_tracer("bench")

        def bare(given: Any, answer: Any) -> None:
            with tracer.start_as_current_span("bare"):
                pass

        def execution(given: Any, answer: Any) -> None:
            with monitor.execution("flashcard_generation", version="1", input=given, **IDS) as run:
                run.output = answer

        gc.collect()
        gc.freeze()
        for number in range(ROUNDS + 1):
            for name in seen:
                away, slow = conditions.get(name, (False, False))
                world.change(away=away, slow=slow)
                turn = Turn()
                asyncio.run(turn.run(bare if name == "bare" else execution))
                if number:  # the first round warms up
                    seen[name].append(turn)
        world.change(away=False, slow=False)
        lost = telemetry.ledger()
        telemetry.shutdown(60)
        database.dispose()
    yield from _figures(seen)
    yield Figure("executions dropped", "", [float(lost.door.dropped)], 0, 0)


def _figures(seen: dict[str, list[Turn]]) -> Iterator[Figure]:
    p99 = {name: [_share(turn.calls, 0.99) * 1e6 for turn in turns] for name, turns in seen.items()}
    yield Figure("call p99, Postgres away / all well", "×", ratios(p99["Postgres away"], p99["all well"]), 1.2, 1.05)
    for name in ("all well", "Postgres away", "disk slow", "both"):
        yield Figure(f"call p99, {name}", "µs", p99[name])
    for name, turns in seen.items():
        stalls = [_share(turn.stalls, 0.999) * 1e3 for turn in turns]
        bounds = (None, None) if name in ("bare", "all well") else (10.0, 5.0)
        yield Figure(f"stall p99.9, {name}", "ms", stalls, *bounds)


def _share(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
