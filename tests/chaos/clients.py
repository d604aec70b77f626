"""Clients: they ask for agents over HTTP, number their requests, and note which of them they saw end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from itertools import count
from pathlib import Path

from tests.app.service import SEED
from tests.chaos.tally import Mark, Tally

CLIENTS = 6
ANSWER_SECONDS = 60.0
BODY = json.dumps(SEED)


class Clients:
    """Several that ask one request after the other, on a connection each, so that any worker may take it."""

    def __init__(self, port: int, tally: Path) -> None:
        self._port = port
        self._tally = Tally(tally)
        self._numbers = count()
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the requests end that are under way."""
        self._stopping = True
        self._thread.join(ANSWER_SECONDS + 10)
        assert not self._thread.is_alive(), "a request was never answered"
        self._tally.close()

    async def _run(self) -> None:
        await asyncio.gather(*(self._ask_on() for _ in range(CLIENTS)))

    async def _ask_on(self) -> None:
        while not self._stopping:
            number = f"r-{next(self._numbers)}"
            self._tally.note(Mark.ASKED, number)
            began = time.perf_counter_ns()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await self._ask(number)
            except OSError:  # its worker died, or nobody listens now
                await asyncio.sleep(0.05)
                continue
            if b"event: result" in answer:
                self._tally.note(Mark.ENDED, number, "success", time.perf_counter_ns() - began)

    async def _ask(self, number: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            head = f"POST /api/ai/process-stream HTTP/1.1\r\nhost: localhost\r\nx-request-id: {number}\r\n"
            more = f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\nconnection: close\r\n\r\n"
            writer.write(f"{head}{more}{BODY}".encode())
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()
