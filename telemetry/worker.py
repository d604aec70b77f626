"""Worker: a background thread that does one thing again and again, in forked children too."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from .fork import in_child

_logger = logging.getLogger("spanledger")
_AFTER_FAILURE = 5.0  # seconds


class Worker:
    """Calls `work`, which answers how many seconds to pause before the next time, until it is stopped.

    Threads do not live on in a forked child, so the child gets one of its own.
    """

    def __init__(self, name: str, work: Callable[[], float], pause: float) -> None:
        self._name = name
        self._work = work
        self._first_pause = pause
        self._begin()
        in_child(self._after_fork)

    def _begin(self) -> None:
        self._stopping = False
        self._called = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Ask the thread to stop; True when it has, within `timeout` seconds."""
        self._stopping = True
        self._called.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def wake(self) -> None:
        """Do it now instead of after the pause."""
        self._called.set()

    def _run(self) -> None:
        pause = self._first_pause
        while not self._stopping:
            self._called.wait(pause)
            self._called.clear()
            if not self._stopping:
                try:
                    pause = self._work()
                except Exception:  # a thread that ends takes everything along that waits for it
                    _logger.exception("%s failed; it tries again in %.0f s", self._name, _AFTER_FAILURE)
                    pause = _AFTER_FAILURE

    def _after_fork(self) -> None:
        running = self._thread.ident is not None and not self._stopping
        self._begin()
        if running:
            self.start()
