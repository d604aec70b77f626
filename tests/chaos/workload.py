"""A process that runs numbered agents and only spools: `python -m tests.chaos.workload SPOOL_DIR TALLY_FILE PREFIX …`.

SIGTERM lets what is open end, SIGUSR1 steps its clock back by `STEP_SECONDS`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import threading
import time
from itertools import count
from pathlib import Path

STEP_SECONDS = 1800
_offset = 0
_time, _time_ns = time.time, time.time_ns
# Before OpenTelemetry is imported, which keeps the function.
time.time = lambda: _time() + _offset
time.time_ns = lambda: _time_ns() + _offset * 1_000_000_000

from opentelemetry.sdk.resources import Resource  # noqa: E402

from telemetry import AgentMonitor, configure  # noqa: E402
from tests.chaos.tally import Mark, Tally  # noqa: E402

AGENT = "numbered"
BEAT_SECONDS = 0.005
# By the last digit of the number; a run of 3 has another inside, one of 4 is open for long.
OUTCOMES: dict[int, type[BaseException]] = {0: ValueError, 1: TimeoutError, 2: asyncio.CancelledError}
STATUSES = {0: "failure", 1: "timeout", 2: "cancelled"}
monitor = AgentMonitor()


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("spool_dir", type=Path)
    parser.add_argument("tally", type=Path)
    parser.add_argument("prefix")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.006)
    parser.add_argument("--payload", type=int, default=500)
    arguments = parser.parse_args()
    tally = Tally(arguments.tally)
    telemetry = configure(spool_dir=arguments.spool_dir, resource=Resource({"service.name": "chaos"}))
    load = Load(tally, arguments.prefix, arguments.pause, arguments.payload)
    # It outlives a SIGKILL of ours, and must not keep anything of us alive.
    child = subprocess.Popen(["sleep", "600"], close_fds=False)
    threads = [threading.Thread(target=load.run_in_thread) for _ in range(arguments.threads)]
    for thread in threads:
        thread.start()
    asyncio.run(load.run_in_loop(arguments.tasks))
    for thread in threads:
        thread.join()
    telemetry.shutdown()
    child.kill()
    child.wait()
    tally.close()


class Load:
    """Numbered runs, one after the other, in tasks and in threads."""

    def __init__(self, tally: Tally, prefix: str, pause: float, payload: int) -> None:
        self._tally = tally
        self._prefix = prefix
        self._numbers = count()
        self._pause = pause
        self._input = "x" * payload
        self._stopping = threading.Event()

    def run_in_thread(self) -> None:
        while not self._stopping.is_set():
            numbered = self._next()
            numbered.open()
            self._stopping.wait(self._pause_of(numbered))
            numbered.close()

    async def run_in_loop(self, tasks: int) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        loop.add_signal_handler(signal.SIGUSR1, step_back)
        await asyncio.gather(self._beat(), *(self._run_in_task() for _ in range(tasks)))

    async def _run_in_task(self) -> None:
        while not self._stopping.is_set():
            numbered = self._next()
            numbered.open()
            await asyncio.sleep(self._pause_of(numbered))
            numbered.close()

    async def _beat(self) -> None:
        """How late the loop comes round: what a stalled call would do to every other task of the process."""
        while not self._stopping.is_set():
            began = time.perf_counter_ns()
            await asyncio.sleep(BEAT_SECONDS)
            self._tally.stall(max(0, time.perf_counter_ns() - began - int(BEAT_SECONDS * 1e9)))

    def _next(self) -> Numbered:
        return Numbered(self._tally, self._prefix, next(self._numbers), self._input)

    def _pause_of(self, numbered: Numbered) -> float:
        return self._pause * (25 if numbered.kind == 4 else 1)


class Numbered:
    """One execution with one model call in it, and for some a sub-agent with a number of its own."""

    def __init__(self, tally: Tally, prefix: str, number: int, payload: str) -> None:
        self.kind = number % 10
        self._tally = tally
        self._number = f"{prefix}-{number}"
        self._run = monitor.execution(AGENT, request_id=self._number, input=payload)
        self._inner: Numbered | None = None
        if self.kind == 3:
            self._inner = Numbered(tally, f"{self._number}.in", 10 * number + 9, payload)
        self._took = 0

    def open(self) -> None:
        self._tally.note(Mark.ASKED, self._number)
        began = time.perf_counter_ns()
        self._run.open()
        self._took += time.perf_counter_ns() - began
        self._tally.note(Mark.OPEN, self._number)

    def close(self) -> None:
        if self._inner is not None:
            with self._run.current():
                self._inner.open()
                self._inner.close()
        began = time.perf_counter_ns()
        with self._run.inference(provider="p", model="m") as call:
            call.usage(input_tokens=100, output_tokens=10)
        self._took += time.perf_counter_ns() - began
        status = STATUSES.get(self.kind, "success")
        self._tally.note(Mark.CLOSING, self._number, status)
        error = OUTCOMES[self.kind]() if self.kind in OUTCOMES else None
        began = time.perf_counter_ns()
        self._run.close(error)
        self._took += time.perf_counter_ns() - began
        self._tally.note(Mark.ENDED, self._number, status, self._took)


def step_back() -> None:
    """What a correction of the clock does."""
    global _offset
    _offset -= STEP_SECONDS


if __name__ == "__main__":
    main()
