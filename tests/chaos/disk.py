"""Disks of our own, as loop devices: a small one that gets full, and one whose device can be stalled. Needs root."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

MEBIBYTE = 1 << 20


def unavailable() -> str | None:
    """Why disks cannot be made here."""
    if os.geteuid() != 0:
        return "mounting takes root"
    try:
        with disk(8):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"loop devices cannot be mounted: {error}"


def required() -> bool:
    """Whether a scenario that cannot have its disk has failed: in CI, and there as root."""
    return os.environ.get("REQUIRE_COMPONENTS") == "1" and os.geteuid() == 0


class Disk:
    """A mounted file system. `below` is the one its device lies on, which `stalled` freezes."""

    def __init__(self, path: Path, below: Path | None = None) -> None:
        self.path = path
        self._below = below
        self._filler = path / "filler"

    def fill(self) -> None:
        """Take all the room there is."""
        fd = os.open(self._filler, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for size in (MEBIBYTE, 64 << 10, 4 << 10):
                with suppress(OSError):
                    while True:
                        os.posix_fallocate(fd, os.fstat(fd).st_size, size)
        finally:
            os.close(fd)

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Its device answers nothing: a frozen file system below holds every write up, this one is not frozen."""
        assert self._below is not None
        _run("fsfreeze", "-f", str(self._below))
        try:
            yield
        finally:
            _run("fsfreeze", "-u", str(self._below))


@contextmanager
def disk(mebibytes: int) -> Iterator[Disk]:
    """One of this size."""
    with tempfile.TemporaryDirectory(prefix="spanledger-chaos-") as directory, ExitStack() as stack:
        yield Disk(_mounted(stack, Path(directory), mebibytes))


@contextmanager
def stallable_disk(mebibytes: int) -> Iterator[Disk]:
    """One on a device whose own disk can be frozen."""
    with tempfile.TemporaryDirectory(prefix="spanledger-chaos-") as directory, ExitStack() as stack:
        below = _mounted(stack, Path(directory), mebibytes + 64)
        yield Disk(_mounted(stack, below, mebibytes), below)


def _mounted(stack: ExitStack, directory: Path, mebibytes: int) -> Path:
    image, path = directory / "image", directory / "mounted"
    path.mkdir()
    with image.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, mebibytes * MEBIBYTE)
    _run("mkfs.ext4", "-q", "-m", "0", str(image))
    _run("mount", "-o", "loop", str(image), str(path))
    stack.callback(_unmount, path)
    path.chmod(0o711)
    return path


def _unmount(path: Path) -> None:
    try:
        _run("umount", str(path))
    except subprocess.CalledProcessError:  # something of a scenario that failed still stands there
        _run("umount", "--lazy", str(path))


def _run(*command: str) -> None:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment)
