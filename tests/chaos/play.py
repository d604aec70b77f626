"""Play: one scenario from its empty database to its balance."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

import httpx

from tests.chaos import disk
from tests.chaos.ledger import Balance
from tests.chaos.link import link
from tests.chaos.postgres import Postgres
from tests.chaos.scenarios import Scenario, Surroundings, wait_until_there
from tests.chaos.stage import Stage
from tests.chaos.tally import Timing, Told
from tests.conftest import memory_disk, reachable_directory
from tests.end_to_end.waiting import eventually

WARM_UP_SECONDS = 2.0
SETTLE_SECONDS = 120.0
"""A sink that was kept away comes back after at most 38 s."""
LONGEST_STALL_MS = 500.0
"""An outage lasts for seconds; what is shorter is a busy machine."""
SMALL_MEBIBYTES, STALLABLE_MEBIBYTES = 64, 192


class Latency(NamedTuple):
    """In ms."""

    p50: float
    p99: float
    p999: float
    most: float

    @classmethod
    def of(cls, timings: list[Timing]) -> Latency:
        values = sorted(timing.took / 1e6 for timing in timings)
        if len(values) < 2:
            return cls(*[values[0] if values else 0.0] * 4)
        cuts = statistics.quantiles(values, n=1000, method="inclusive")
        return cls(cuts[499], cuts[989], cuts[998], values[-1])


class Outcome(NamedTuple):
    """What came of a scenario: latencies before and during it, of our calls and of the event loop's turns."""

    scenario: str
    seconds: float
    balance: Balance
    calls: tuple[Latency, Latency]
    stalls: tuple[Latency, Latency]


def play(scenario: Scenario, server: Postgres, *, rounds: int, seconds: float, seed: int) -> Outcome:
    """Set the stage, load it, do it, wait until all has settled, and compare.

    Raises:
        AssertionError: It never settled, or something did not start.
    """
    began = time.monotonic()
    random = Random(f"{seed} {scenario.name}")
    with ExitStack() as stack:
        made = {"small": (disk.disk, SMALL_MEBIBYTES), "stallable": (disk.stallable_disk, STALLABLE_MEBIBYTES)}
        mounted = None
        if scenario.disk != "none":
            make, size = made[scenario.disk]
            mounted = stack.enter_context(make(size))
        data_dir = (mounted.path if mounted else stack.enter_context(reachable_directory(memory_disk()))) / "data"
        tallies = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory_disk())))
        name = stack.enter_context(server.database())
        connection = stack.enter_context(link(server.port))
        options = scenario.options
        stage = stack.enter_context(
            scenario.stage(data_dir, server.url(name, connection.port), tallies, random, *options)
        )
        around = Surroundings(stage, server, connection, mounted, random, rounds, seconds)
        try:
            stage.begin()
            time.sleep(WARM_UP_SECONDS)
            with watched(stage) as seen:
                before = time.monotonic_ns()
                scenario.do(around)
                after = time.monotonic_ns()
            time.sleep(WARM_UP_SECONDS / 2)
            stage.finish()
            wait_until_there(server)
            eventually(stage.settled, SETTLE_SECONDS)
        except AssertionError as error:
            error.add_note(f"left in the spool: {stage.leftovers()}; stderr: {stage.last_words()}")
            raise
        told = Told.of(tallies)
        balance = Balance.of(stage, told, server.url(name))
        calls, stalls = (_split(timings, before, after) for timings in (told.calls, told.stalls))
        balance.faults.extend(_more_faults(scenario, seen, balance, stalls))
        if balance.faults:
            balance.faults.append(f"stderr: {stage.last_words()}")
    return Outcome(scenario.name, time.monotonic() - began, balance, calls, stalls)


def _split(timings: list[Timing], before: int, after: int) -> tuple[Latency, Latency]:
    """Those that ended before, and those that ran during it."""
    earlier = [timing for timing in timings if timing.at < before]
    during = [timing for timing in timings if timing.at >= before and timing.at - timing.took <= after]
    return Latency.of(earlier), Latency.of(during)


def _more_faults(
    scenario: Scenario, seen: set[tuple[int, str]], balance: Balance, stalls: tuple[Latency, Latency]
) -> Iterator[str]:
    if balance.dropped and not scenario.lossy:
        yield f"rows were dropped: {balance.dropped}"
    if refused := {answer for answer in seen if answer[0] != 200}:
        yield f"/readyz answered {sorted(refused)}"
    if scenario.degraded and (200, "degraded") not in seen:
        yield f"/readyz never said degraded: {sorted(seen)}"
    if not scenario.waits and stalls[1].most > LONGEST_STALL_MS:
        yield f"the event loop of an agent stood still for {stalls[1].most:.0f} ms"


@contextmanager
def watched(stage: Stage) -> Iterator[set[tuple[int, str]]]:
    """What /readyz answers meanwhile; no answer at all is not in it, for its process may just have been killed."""
    seen: set[tuple[int, str]] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.3):
            try:
                answer = httpx.get(f"{stage.service.url}/readyz", timeout=10)
                seen.add((answer.status_code, answer.json().get("status", "")))
            except (httpx.HTTPError, ValueError):
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
