"""The guard at the door: whatever goes wrong in our code stays here, counted, and never reaches the agent."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter

_logger = logging.getLogger("spanledger")
_QUIET = 20.0  # seconds between two log lines of one place


class Guard:
    """Counts our own errors by place and logs each place at most once in 20 s."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._logged: dict[str, float] = {}

    def report(self, where: str) -> None:
        """Note the exception being handled. Never raises."""
        self.counts[where] += 1
        now = time.monotonic()
        if now - self._logged.get(where, -_QUIET) >= _QUIET:
            self._logged[where] = now
            with contextlib.suppress(Exception):  # a handler of the host's
                _logger.exception("error in spanledger at %s (%d so far); the agent goes on", where, self.counts[where])
