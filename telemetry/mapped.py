"""A file in memory: what is stored in it is the kernel's at once, and outlives the process."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

_POPULATE_WRITE = 23  # madvise(2) since Linux 5.14; Python's mmap has no name for it


class MappedFile:
    """A new file of `size` bytes, all zero, reserved on disk, its pages (or the first `present` bytes) in memory.

    So a store is a copy in memory: it asks the disk for nothing, and a full disk is an error here, never a SIGBUS
    there. Once the kernel has written a page back by itself, after half a minute, the next store into it is slower.

    Raises:
        OSError: It exists, or the disk has no room for it.
    """

    __slots__ = ("bytes", "fd", "path")

    def __init__(self, path: Path, size: int, present: int | None = None) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _reserve(self.fd, size)
            self.bytes = mmap.mmap(self.fd, size)
            _populate(self.bytes, size if present is None else present)
        except BaseException:
            os.close(self.fd)
            path.unlink(missing_ok=True)
            raise

    def unmap(self) -> None:
        """Nothing is stored in it any more; what was is read from `fd`."""
        if not self.bytes.closed:  # a second `close` would hand over the interpreter's lock for nothing
            self.bytes.close()

    def close(self) -> None:
        """Let go of it; the file stays as it is."""
        self.unmap()
        os.close(self.fd)


def _reserve(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not every file system and libc can
                raise
    if os.pwrite(fd, bytes(size), 0) < size:  # macOS has no other way
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _populate(mapped: mmap.mmap, size: int) -> None:
    try:
        mapped.madvise(_POPULATE_WRITE, 0, size)
    except OSError as error:
        if error.errno != errno.EINVAL:  # an older kernel, or macOS
            raise
        for page in range(0, size, mmap.PAGESIZE):
            mapped[page] = 0
