"""Scenarios: what is done to a stage under load. Each is a function of the surroundings; its first line says what."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Literal

import psycopg

from tests.chaos.disk import Disk
from tests.chaos.link import Link
from tests.chaos.postgres import Postgres
from tests.chaos.stage import Library, Stage, Workers
from tests.end_to_end.waiting import eventually

Disks = Literal["none", "small", "stallable"]


@dataclass
class Surroundings:
    """What a scenario may lay hands on. `rounds` is how often it does what it does, `seconds` how long an outage is."""

    stage: Stage
    postgres: Postgres
    link: Link
    disk: Disk | None
    random: Random
    rounds: int
    seconds: float

    def pause(self) -> None:
        """Until a random moment: that no two rounds meet the processes at the same."""
        time.sleep(self.random.uniform(0.2, 1.5))

    @contextmanager
    def away(self) -> Iterator[None]:
        """Postgres cannot be reached in the block: the service says `degraded`, and goes on."""
        began = time.monotonic()
        yield
        time.sleep(max(0.0, began + self.seconds - time.monotonic()))


@dataclass(frozen=True)
class Scenario:
    """One of the list, and what it needs."""

    name: str
    do: Callable[[Surroundings], None]
    stage: type[Workers] | type[Library]
    options: tuple[str, ...] = ()
    disk: Disks = "none"
    degraded: bool = False  # Postgres is away for so long that /readyz has to say it
    lossy: bool = False  # rows may be dropped, if they are counted
    waits: bool = True  # else the event loop of an agent may not, however long the outage is
    what: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "what", (self.do.__doc__ or "").strip())


def kill(around: Surroundings) -> None:
    """SIGKILL of a random process that runs agents, at random moments"""
    for _ in range(5 * around.rounds):
        time.sleep(around.random.uniform(0.1, 1.0))
        around.stage.kill_one()


def recycle(around: Surroundings) -> None:
    """all processes that run agents are replaced, one after the other"""
    for _ in range(around.rounds):
        around.pause()
        around.stage.recycle()


def kill_service(around: Surroundings) -> None:
    """SIGKILL of the process that stores and counts, also with rows it has counted and not stored; it comes back"""
    for number in range(around.rounds):
        with around.link.being("up" if number % 2 else "cut"):
            around.pause()
            around.pause()
            around.stage.kill_service()


def kill_postgres(around: Surroundings) -> None:
    """SIGKILL of Postgres; it is started again"""
    for _ in range(around.rounds):
        around.pause()
        around.postgres.kill()
        around.pause()
        around.postgres.start()


def shut_postgres_down(around: Surroundings) -> None:
    """Postgres is shut down, and comes back"""
    around.postgres.shut_down()
    with around.away():
        pass
    around.postgres.start()


def freeze_postgres(around: Surroundings) -> None:
    """Postgres and all its backends stand still (SIGSTOP), with their sockets open"""
    with around.postgres.frozen(), around.away():
        pass


def terminate_backends(around: Surroundings) -> None:
    """all sessions of Postgres are terminated, again and again"""
    for _ in range(5 * around.rounds):
        time.sleep(around.random.uniform(0.05, 0.5))
        around.postgres.terminate_backends()


def cut_link(around: Surroundings) -> None:
    """the connection to Postgres is cut, and refused for a while"""
    for _ in range(around.rounds):
        cut_link_once(around)
        around.pause()


def cut_link_once(around: Surroundings) -> None:
    with around.link.being("cut"):
        around.pause()


def slow_link(around: Surroundings) -> None:
    """64 KiB a second are all that gets to Postgres, and late"""
    with around.link.being("slow"), around.away():
        pass


def half_open_link(around: Surroundings) -> None:
    """connections to Postgres swallow everything, for ever; new ones work again later"""
    with around.link.being("half-open"), around.away():
        pass


def lose_commits(around: Surroundings) -> None:
    """Postgres commits, and the connection ends before the sink hears of it"""
    for _ in range(around.rounds):
        with around.link.being("deaf"):
            around.pause()
            around.pause()
        around.pause()


def fill_disk(around: Surroundings) -> None:
    """the spool's disk is full, again and again as the sink frees room"""
    assert around.disk is not None
    end = time.monotonic() + around.seconds
    while time.monotonic() < end:
        around.disk.fill()
        time.sleep(0.1)
    around.disk.free()


def stall_disk(around: Surroundings) -> None:
    """the spool's disk answers nothing"""
    assert around.disk is not None
    with around.disk.stalled():
        time.sleep(around.seconds)


def step_clock_back(around: Surroundings) -> None:
    """the clock of the agents' processes is set back by half an hour, in the midst of their runs"""
    assert isinstance(around.stage, Library)
    for _ in range(around.rounds):
        around.pause()
        around.stage.step_clocks_back()


def everything(around: Surroundings) -> None:
    """all of it at once, in random order, while Postgres is killed"""
    stage, postgres = around.stage, around.postgres
    for _ in range(around.rounds):
        deeds: list[Callable[[], object]] = [stage.kill_one, stage.kill_one, stage.recycle, stage.kill_service]
        deeds += [partial(cut_link_once, around), stage.kill_one]
        deeds.insert(around.random.randrange(len(deeds)), postgres.kill)
        for deed in around.random.sample(deeds, len(deeds)):
            around.pause()
            deed()
        around.pause()
        postgres.start()


PAYLOAD = ("--payload", "6000")
BUSY = ("--threads", "4", "--pause", "0.001")
QUIET = ("--threads", "0", "--tasks", "4", "--payload", "2000")
SCENARIOS = [
    Scenario("kill-workers", kill, Workers),
    Scenario("kill-libraries", kill, Library, BUSY),
    Scenario("recycle-workers", recycle, Workers),
    Scenario("recycle-libraries", recycle, Library),
    Scenario("postgres-killed", kill_postgres, Workers),
    Scenario("postgres-down", shut_postgres_down, Library, degraded=True),
    Scenario("postgres-frozen", freeze_postgres, Workers, degraded=True),
    Scenario("backends-terminated", terminate_backends, Library),
    Scenario("link-cut", cut_link, Library),
    Scenario("link-slow", slow_link, Library),
    Scenario("link-half-open", half_open_link, Library, degraded=True),
    Scenario("commit-unheard", lose_commits, Library),
    Scenario("disk-full", fill_disk, Library, PAYLOAD, disk="small", lossy=True),
    Scenario("disk-stalled", stall_disk, Library, QUIET, disk="stallable", waits=False),
    Scenario("clock-back", step_clock_back, Library),
    Scenario("supervisor-killed", kill_service, Workers),
    Scenario("drain-killed", kill_service, Library),
    Scenario("everything-workers", everything, Workers),
    Scenario("everything-libraries", everything, Library),
]


def wait_until_there(postgres: Postgres) -> None:
    """Postgres answers: after a scenario it must, or nothing can be compared."""

    def there() -> bool:
        try:
            psycopg.connect(postgres.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    eventually(there)
