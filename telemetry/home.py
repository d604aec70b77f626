"""A home: the directory of one process below the spool, held by an advisory lock for as long as the process lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_LOCK = "lock"


class Home(NamedTuple):
    """A directory and the descriptor that holds its lock: of this process, and of no child of it."""

    path: Path
    lock: int

    @classmethod
    def settle(cls, directory: Path) -> Home:
        """Make one below `directory`, which is made with mode 0700 when missing.

        Raises:
            OSError: It cannot be made.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        hidden = directory / f".{name}"  # nobody adopts it before it is locked
        hidden.mkdir(mode=0o700)
        lock = _lock(hidden / _LOCK)
        if lock is None:
            raise OSError(f"{hidden} was taken by another process")
        return cls(hidden.rename(directory / name), lock)

    def leave(self) -> None:
        """Let go of the lock; whoever comes next adopts what is left."""
        os.close(self.lock)


def is_alive(home: Path) -> bool:
    """Whether a process lives there."""
    lock = _lock(home / _LOCK) if home.is_dir() else None
    if lock is not None:
        os.close(lock)
    return home.is_dir() and lock is None


def abandoned(directory: Path, own: Path) -> Iterator[Path]:
    """Homes of dead processes, each locked while the loop is at it; an empty one is removed after that."""
    try:
        homes = list(directory.iterdir())
    except FileNotFoundError:
        return
    for home in homes:
        # Another process adopted it just now, or it belongs to another user: no reason to hold up the rest.
        with contextlib.suppress(OSError):
            if home == own or not home.is_dir() or _is_beginning(home):
                continue
            lock = _lock(home / _LOCK)
            if lock is None:
                continue
            try:
                yield home
                if [path.name for path in home.iterdir()] == [_LOCK]:
                    (home / _LOCK).unlink()
                    home.rmdir()
            finally:
                os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None where a living process holds it or the directory is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _is_beginning(home: Path) -> bool:
    """Whether a process may still be about to lock this directory."""
    return home.name.startswith(".") and time.time() - home.stat().st_mtime < 60
