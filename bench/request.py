"""What a server span and one execution add to a FastAPI request, 1 KB in and 1 KB out.

Two servers, uvicorn with uvloop and httptools, one worker each: the plain application, and the same one with
FastAPIInstrumentor as in the service, a monitored execution, metrics and the spool. No exporter, no sink; gc.freeze()
and FastAPI's native telemetry off in both. Asked in turns from this process over one keep-alive connection on loopback,
so latencies are those of an idle server. CPU is that of the whole server process, user and system.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

import orjson

from bench.figure import Figure, differences
from bench.payloads import messages

REQUESTS = 1000  # a round
ROUNDS = 9
BODY = orjson.dumps(messages(2)[1])
HEAD = "{} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
RUN = HEAD.format("POST /run", len(BODY)).encode() + BODY
CPU = HEAD.format("GET /healthz", 0).encode()


class Server:
    """A server process and the connection to it; values for each round, in microseconds."""

    def __init__(self, kind: str) -> None:
        self.cpu: list[float] = []
        self.p50: list[float] = []
        self.p99: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.server", kind], stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._stop)
            assert self._process.stdout is not None
            port = int(self._process.stdout.readline())
            self._connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._on_exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._on_exit.close()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def round(self) -> None:
        """Ask `REQUESTS` times."""
        cpu = float(self._ask(CPU))
        latencies = []
        for _ in range(REQUESTS):
            start = time.perf_counter()
            self._ask(RUN)
            latencies.append((time.perf_counter() - start) * 1e6)
        self.cpu.append((float(self._ask(CPU)) - cpu) / REQUESTS * 1e6)
        percentiles = statistics.quantiles(latencies, n=100)
        self.p50.append(percentiles[49])
        self.p99.append(percentiles[98])

    def _ask(self, request: bytes) -> bytes:
        """The body of the answer, whose length is always declared."""
        self._connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._received()
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the server answered {head.splitlines()[0].decode()}")
        length = int(head.lower().partition(b"content-length:")[2].split(maxsplit=1)[0])
        while len(body) < length:
            body += self._received()
        return body

    def _received(self) -> bytes:
        received = self._connection.recv(65536)
        if not received:
            raise RuntimeError("the server closed the connection")
        return received


def run() -> Iterator[Figure]:
    """The monitored server against the plain one."""
    with Server("plain") as plain, Server("monitored") as monitored:
        sides = [plain, monitored]
        for number in range(ROUNDS + 1):
            for server in sides:
                server.round()
                if number == 0:  # the warm-up
                    del server.cpu[:], server.p50[:], server.p99[:]
            sides.reverse()
    yield Figure("added CPU a request", "µs", differences(monitored.cpu, plain.cpu), 350, 200)
    for name, server in (("plain", plain), ("monitored", monitored)):
        yield Figure(f"{name}: CPU a request", "µs", server.cpu)
        yield Figure(f"{name}: latency p50", "µs", server.p50)
        yield Figure(f"{name}: latency p99", "µs", server.p99)
