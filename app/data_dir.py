"""The data directory: one service at a time owns it; it keeps the admin token made at first start."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from app.settings import StartError

IN_USE = "another spanledger (pid {pid}) uses {path}; stop it, or set SPANLEDGER_DATA_DIR elsewhere"
NOT_WRITABLE = "{path} is not writable ({reason}); change its owner, or set SPANLEDGER_DATA_DIR elsewhere"
MODE = 0o711 if os.geteuid() == 0 else 0o700
"""Nobody else may list it; as root the database server, then a user of its own, passes through."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make or open what is in `path`.

    Raises:
        StartError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise StartError(NOT_WRITABLE.format(path=path, reason=error.strerror)) from error


class DataDir:
    """Owns `path` from `acquire` to `release`, by a lock that ends with the process however it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def acquire(self) -> Self:
        """Make the directory and lock it.

        Raises:
            StartError: It cannot be written, or another process has it.
        """
        with writing(self.path):
            for directory in reversed([self.path, *self.path.parents]):
                if not directory.exists():
                    directory.mkdir()
                    directory.chmod(MODE)
            # Never inheritable (PEP 446): a child such as the database server would keep the lock.
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(lock, 32).decode() or "unknown"
            os.close(lock)
            raise StartError(IN_USE.format(pid=pid, path=self.path)) from None
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        self._lock = lock
        return self

    def release(self) -> None:
        """Give the directory up; again is fine."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def token_file(self) -> Path:
        """Where the admin token made at first start is kept."""
        return self.path / "admin-token"

    def admin_token(self) -> str:
        """The token made at first start, now if there is none yet.

        Raises:
            StartError: The file cannot be read or written.
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                if token := self.token_file.read_text("ascii").strip():
                    return token
            token = secrets.token_urlsafe()
            draft = self.path / f".admin-token.{os.getpid()}"
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(token + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self.token_file)
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"{self.token_file} is unusable ({error}); delete it to get a new one") from None
        return token
