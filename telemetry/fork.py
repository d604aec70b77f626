"""Forking: what has threads, locks or descriptors begins anew in a child."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable


def in_child(method: Callable[[], None]) -> None:
    """Call this bound method in every forked child, for as long as its object lives; in the order of asking."""
    reference = weakref.WeakMethod(method)

    def run() -> None:
        alive = reference()
        if alive is not None:
            alive()

    os.register_at_fork(after_in_child=run)
