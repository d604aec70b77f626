"""Stage: what is under test with its load, and what a fault may do to its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random
from typing import Self

import httpx

from telemetry import open_runs
from telemetry.home import is_alive
from tests.app.service import ROOT, SEED, Service, free_port
from tests.chaos.clients import Clients
from tests.chaos.workload import AGENT
from tests.end_to_end.waiting import eventually

END_SECONDS = 60.0
BEGINNING_SECONDS = 60.0
"""How long a directory that its process has not locked is left alone."""


class Stage(ABC):
    """A service that stores and counts, on `data_dir`; leaving the block kills whatever is left of it.

    Args:
        database_url: As the service reaches it.
        tallies: Where the load tells what it did.
    """

    command: tuple[str, ...]
    agents: tuple[str, ...]
    """Those that run once for each number."""
    steps = 0
    """Of each numbered execution."""
    kill_pause = (0.1, 1.0)
    """Seconds between two kills, from and to."""

    def __init__(self, data_dir: Path, database_url: str, tallies: Path, random: Random) -> None:
        self.data_dir = data_dir
        self.spool_dir = data_dir / "spool"
        self.tallies = tallies
        self.random = random
        self.restarted = False
        self.counted: Counter[str] = Counter()  # executions by status, by services that were killed
        self.heard: list[str] = []  # stderr of services that ended
        self._database_url = database_url
        self._port = free_port()
        self.service = self._start_service()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.service.__exit__()

    def _start_service(self) -> Service:
        url, port = self._database_url, str(self._port)
        service = Service(self.data_dir, *self.command, DATABASE_URL=url, LOG_LEVEL="error", PORT=port)
        service.port, service.url = self._port, f"http://127.0.0.1:{self._port}"
        return service

    @abstractmethod
    def begin(self) -> None:
        """Start the load, once the service is ready."""

    @abstractmethod
    def kill_one(self) -> None:
        """SIGKILL for one of the processes that run agents."""

    @abstractmethod
    def recycle(self) -> None:
        """Replace all processes that run agents, politely."""

    @abstractmethod
    def finish(self) -> None:
        """Let the load end what it has begun."""

    def kill_service(self) -> None:
        """SIGKILL for whoever stores and counts; another is started as soon as the address is free."""
        self.restarted = True
        with suppress(httpx.HTTPError):  # not up yet since the last time
            self.counted.update(self.metrics().get("spanledger_executions_total", {}))
        self.service.process.send_signal(signal.SIGKILL)
        self.heard.append(self.service.process.communicate()[1])
        eventually(lambda: not _listens(self._port), 30)  # workers end by themselves, but hold it until then
        self.service = self._start_service()
        eventually(self._answers)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.service.url}/readyz", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    def settled(self) -> bool:
        """Whether nothing waits, runs, or is left of a process that is gone."""
        return not open_runs(self.spool_dir) and self.leftovers() == [] and not self._waiting()

    def _waiting(self) -> bool:
        opened = [path for path in self.spool_dir.glob("*/*.executions.open") if path.read_bytes().strip(b"\0")]
        return bool(opened or [*self.spool_dir.glob("*/*.v1.executions")])

    def last_words(self) -> str:
        """What the services wrote to stderr; ends the one that runs."""
        self.service.process.terminate()
        return "\n".join([*self.heard, self.service.end()[2]])[-3000:]

    def leftovers(self) -> list[str]:
        """What is in the spool directory beside the homes of the living."""
        return [
            path.name
            for path in self.spool_dir.iterdir()
            if not is_alive(path)
            and not (path.name.startswith(".") and time.time() - path.stat().st_mtime < BEGINNING_SECONDS)
        ]

    def metrics(self) -> dict[str, dict[str, float]]:
        """Sums over all agents: metric -> value of its `status`, `reason` or `table` (or "") -> sum."""
        found: dict[str, dict[str, float]] = {}
        for line in httpx.get(f"{self.service.url}/metrics", timeout=10).raise_for_status().text.splitlines():
            if line.startswith("spanledger_"):
                series, _, value = line.rpartition(" ")
                name, _, labels = series.partition("{")
                kinds = [pair.partition("=") for pair in labels.rstrip("}").split(",")]
                kind = next((text.strip('"') for key, _, text in kinds if key in ("status", "reason", "table")), "")
                sums = found.setdefault(name, {})
                sums[kind] = sums.get(kind, 0) + float(value)
        return found


class Library(Stage):
    """`spanledger drain`, and beside it processes of a host that use the library and only spool."""

    command = ("-m", "app", "drain")
    agents = (AGENT,)
    steps = 1

    def __init__(
        self, data_dir: Path, database_url: str, tallies: Path, random: Random, *options: str, processes: int = 2
    ) -> None:
        super().__init__(data_dir, database_url, tallies, random)
        self._options = options
        self._count = processes
        self._processes: list[subprocess.Popen[bytes]] = []
        self._groups: list[int] = []  # with what outlives its parent
        self._prefixes = count(1)

    def __exit__(self, *_: object) -> None:
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        super().__exit__()

    def begin(self) -> None:
        self.service.ready()
        for _ in range(self._count):
            self._spawn()
        eventually(lambda: all(path.stat().st_size for path in self._tallies()))

    def _tallies(self) -> list[Path]:
        return [self.tallies / f"p{number + 1}" for number in range(self._count)]

    def _spawn(self) -> None:
        prefix = f"p{next(self._prefixes)}"
        tally = self.tallies / prefix
        tally.touch()
        program = ("-m", "tests.chaos.workload", str(self.spool_dir), str(tally), prefix)
        command = [sys.executable, *program, *self._options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        self._processes.append(process)
        self._groups.append(process.pid)

    def kill_one(self) -> None:
        victim = self._processes.pop(self.random.randrange(len(self._processes)))
        victim.kill()
        victim.wait()
        self._spawn()

    def recycle(self) -> None:
        for _ in range(self._count):
            process = self._processes.pop(0)
            self._end(process)
            self._spawn()

    def step_clocks_back(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGUSR1)

    def finish(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        code = process.wait(END_SECONDS)
        # A signal may come before there is a handler for it: nothing has begun then.
        assert code in (0, -signal.SIGTERM), f"the workload ended with {code}"


class Workers(Stage):
    """`spanledger run --workers 3`, asked over HTTP by clients that keep the tally."""

    command = ("-m", "app", "run", "--workers", "3")
    agents = ("main_orchestrator", str(SEED["type"]))
    kill_pause = (1.0, 2.5)  # one that lives for less than 5 s is started again after a pause, which grows

    def begin(self) -> None:
        self.service.ready()
        eventually(lambda: len(self.pids()) == 3)
        self._clients = Clients(self.service.port, self.tallies / "clients")
        self._clients.start()

    def __exit__(self, *_: object) -> None:
        pids = self.pids()
        super().__exit__()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pids(self) -> list[int]:
        """Of the workers."""
        pid = self.service.process.pid
        with suppress(OSError):
            children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            return [child for child in children if _is_worker(child)]
        return []

    def kill_one(self) -> None:
        if pids := self.pids():
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(pids), signal.SIGKILL)

    def recycle(self) -> None:
        before = set(self.pids())
        eventually(lambda: self._replaced(before), 90)

    def _replaced(self, before: set[int]) -> bool:
        now = set(self.pids())
        if before <= now:  # not begun: a signal is ignored while the last replacing is under way
            self.service.process.send_signal(signal.SIGHUP)
        return len(now) == 3 and not before & now

    def finish(self) -> None:
        self._clients.stop()


def _is_worker(pid: int) -> bool:
    with suppress(OSError):
        return b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def _listens(port: int) -> bool:
    listening = f" 0100007F:{port:04X} 00000000:0000 0A "
    return listening in Path("/proc/net/tcp").read_text()
