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
    """A directory and the descriptors that hold its locks: of this process, and of no child of it.

    Both the directory and a file in it are locked: the one cannot be deleted from under us, the other is what releases
    before this one look at.
    """

    path: Path
    locks: tuple[int, ...]

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
        (hidden / _LOCK).touch(0o600)
        locks = _lock(hidden)
        if locks is None:
            raise OSError(f"{hidden} was taken by another process")
        return cls(hidden.rename(directory / name), locks)

    def leave(self) -> None:
        """Let go of the locks; whoever comes next adopts what is left."""
        for lock in self.locks:
            os.close(lock)


def is_alive(home: Path) -> bool:
    """Whether a process lives there."""
    try:
        locks = _lock(home)
    except FileNotFoundError:
        return False
    for lock in locks or ():
        os.close(lock)
    return locks is None


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
            locks = _lock(home)
            if locks is None:
                continue
            try:
                yield home
                if {path.name for path in home.iterdir()} <= {_LOCK}:
                    (home / _LOCK).unlink(missing_ok=True)
                    home.rmdir()
            finally:
                for lock in locks:
                    os.close(lock)


def _lock(home: Path) -> tuple[int, ...] | None:
    """Descriptors that hold the locks of a home, or None where a living process holds one.

    Raises:
        OSError: It is gone, or belongs to another user.
    """
    locks: list[int] = []
    try:
        locks.append(os.open(home, os.O_RDONLY | os.O_CLOEXEC))
        with contextlib.suppress(FileNotFoundError):  # somebody deleted the file
            locks.append(os.open(home / _LOCK, os.O_RDONLY | os.O_CLOEXEC))
        for lock in locks:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        for lock in locks:
            os.close(lock)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return tuple(locks)


def _is_beginning(home: Path) -> bool:
    """Whether a process may still be about to lock this directory."""
    return home.name.startswith(".") and time.time() - home.stat().st_mtime < 60
