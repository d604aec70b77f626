"""Deadline: the end of a conversation over a socket, from outside: who waits for an answer looks at no clock."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def deadline(fileno: int, seconds: float) -> Iterator[None]:
    """Shut the socket down when the block takes longer; whoever waits for it there is told that it is closed.

    Keepalive and `tcp_user_timeout` find hosts that are gone, but not a proxy that swallows everything.
    """
    connection = socket.socket(fileno=os.dup(fileno))  # a number that nobody else gets meanwhile
    timer = threading.Timer(seconds, _shut_down, (connection,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        connection.close()


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has just ended
        connection.shutdown(socket.SHUT_RDWR)
