"""Set aside: rows that nobody will take stay readable, with the reason, in a file of the spool directory."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from pathlib import Path

from .segment import VERSION, size_of

REJECTED = "rejected.ndjson"
REJECTED_BYTES = 64 << 20  # a fuller file gives way to a new one; one predecessor is kept


def set_aside(spool_dir: Path, table: str, line: bytes, reason: str, detail: str) -> None:
    """Keep a row that Postgres will not take.

    Raises:
        OSError: The disk refused.
    """
    record = {"at": time.time(), "table": table, "reason": reason, "detail": detail, "version": VERSION}
    text = (json.dumps({**record, "line": line.decode("utf-8", "replace")}) + "\n").encode()
    path = spool_dir / REJECTED
    if size_of(path) > REJECTED_BYTES:
        with contextlib.suppress(FileNotFoundError):  # another process was first
            path.replace(path.with_suffix(".1.ndjson"))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(fd)
