"""Link: the network between the service and Postgres, as a TCP proxy that can be cut, slow, or lose one side."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

State = Literal["up", "cut", "slow", "half-open", "deaf"]
SLOW_BYTES = 64 << 10  # a second
CHUNK = 16 << 10
COMMITTED = b"COMMIT\0"  # as the server's answer says it


class Link:
    """Listens on a loopback port and passes everything on to `target`, as its state lets it.

    `cut` ends every connection and refuses new ones; `slow` lets little through, late; `half-open` swallows what
    comes, on the connections there are for ever, without a word to either side; `deaf` ends a connection instead of
    passing on that the server has committed.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._state: State = "up"
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def being(self, state: State) -> Iterator[None]:
        """In this state until the end of the block."""
        self._state = state
        for pair in self._pairs:
            pair.suffer(state)
        try:
            yield
        finally:
            self._state = "up"
            for pair in self._pairs:
                pair.suffer("up")

    def close(self) -> None:
        self._state = "cut"
        self._listener.close()
        for pair in self._pairs:
            pair.suffer("cut")

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                if self._state == "cut":
                    client.close()
                    continue
                pair = _Pair(client, self._target)
                pair.suffer(self._state)
                self._pairs = [known for known in self._pairs if not known.ended] + [pair]
                pair.start()


class _Pair:
    """One connection, both ways."""

    def __init__(self, client: socket.socket, target: int) -> None:
        self.ended = False
        self._slow = self._deaf = self._lost = False
        self._client = client
        self._target = target
        self._server: socket.socket | None = None

    def start(self) -> None:
        threading.Thread(target=self._connect, daemon=True).start()

    def suffer(self, state: State) -> None:
        self._slow, self._deaf = state == "slow", state == "deaf"
        self._lost |= state == "half-open"
        if state == "cut":
            self._end()

    def _connect(self) -> None:
        try:
            self._server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            self._end()
            return
        threading.Thread(target=self._pump, args=(self._server, self._client), daemon=True).start()
        self._pump(self._client, self._server)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                if self._slow:
                    time.sleep(0.05 + len(data) / SLOW_BYTES)
                if self._deaf and COMMITTED in data and source is self._server:
                    break
                if not self._lost:
                    sink.sendall(data)
            if self._lost:  # the other side is never told
                return
        self._end()

    def _end(self) -> None:
        self.ended = True
        for side in (self._client, self._server):
            if side is not None:
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
                side.close()


@contextmanager
def link(target: int) -> Iterator[Link]:
    made = Link(target)
    try:
        yield made
    finally:
        made.close()
