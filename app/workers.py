"""Workers: the processes that serve requests under one supervisor, kept running until the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from pathlib import Path

logger = logging.getLogger(__name__)

STOP_SECONDS = 20.0
"""How long a worker may take to stop: its open requests, its streams, sealing its spool."""
SHORT_LIFE_SECONDS = 5.0
"""A worker that lived no longer than this is started again after a pause, which grows up to the longest."""
LONGEST_PAUSE_SECONDS = 10.0


class Workers:
    """`count` processes that accept on `listener`; each is started again when it ends.

    On stdin a worker gets the URL of the database, which is nobody else's to see. It stays open; its end, however this
    process ends, tells the worker to stop.
    """

    def __init__(self, count: int, listener: socket.socket) -> None:
        self._count = count
        self._listener = listener
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._serving = [asyncio.Event() for _ in range(count)]
        self._recycler: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self, database_url: str, supervisor: Path) -> None:
        """Start them; `supervisor` is the socket of whoever has the metrics."""
        command = (sys.executable, "-m", "app", "worker", str(self._listener.fileno()), str(supervisor))
        for number in range(self._count):
            self._keepers.append(asyncio.create_task(self._keep(number, command, database_url)))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._recycle_soon)

    async def stop(self) -> None:
        """Stop them, and kill those that do not."""
        self._stopping = True
        if self._recycler is not None:
            self._recycler.cancel()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # not the end of us, while rows are stored
        for number in list(self._processes):
            self._signal(number, signal.SIGTERM)
        _, late = await asyncio.wait(self._keepers, timeout=STOP_SECONDS)
        for number in list(self._processes):
            self._signal(number, signal.SIGKILL)
        if late:
            await asyncio.wait(late)

    def _recycle_soon(self) -> None:
        if self._recycler is None or self._recycler.done():
            self._recycler = asyncio.create_task(self._recycle())

    async def _recycle(self) -> None:
        """Replace one after the other, so that there is always one that serves."""
        for number in range(self._count):
            process = self._processes.get(number)
            if process is not None and not self._stopping:
                self._signal(number, signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), STOP_SECONDS)
                self._signal(number, signal.SIGKILL)
                await process.wait()
                await self._serving[number].wait()

    def _signal(self, number: int, which: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, KeyError):
            self._processes[number].send_signal(which)

    async def _keep(self, number: int, command: tuple[str, ...], database_url: str) -> None:
        pause = 0.0
        while not self._stopping:
            began = time.monotonic()
            try:
                code = await self._live(number, command, database_url)
            except OSError as error:
                logger.warning("worker %d could not be started (%s)", number, error)
            else:
                if self._stopping:
                    return
                logger.warning("worker %d ended with %d; starting another", number, code)
            short = time.monotonic() - began < SHORT_LIFE_SECONDS
            pause = min(max(0.5, pause * 2), LONGEST_PAUSE_SECONDS) if short else 0.0
            await asyncio.sleep(pause)

    async def _live(self, number: int, command: tuple[str, ...], database_url: str) -> int:
        """One worker from its start to its end: its exit code."""
        process = self._processes[number] = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(self._listener.fileno(),),
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop them in order
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{database_url}\n".encode())
        if await process.stdout.readline():  # it says so once it serves; nothing else is printed there
            self._serving[number].set()
        code = await process.wait()
        self._serving[number].clear()
        self._processes.pop(number, None)
        return code
