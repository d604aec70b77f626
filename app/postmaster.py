"""The server process of a data directory, found through its postmaster.pid."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple


class Postmaster(NamedTuple):
    """A live server: what its postmaster.pid says."""

    pid: int
    socket_dir: str
    status: str  # starting, ready, stopping


def running(pgdata: Path) -> Postmaster | None:
    """The live server of this data directory. A pid alone proves nothing: numbers come round again."""
    try:
        lines = (pgdata / "postmaster.pid").read_text().splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    if str(pgdata) not in command_line(pid):
        return None
    lines += [""] * 8
    return Postmaster(pid, socket_dir=lines[4], status=lines[7].strip())


def forget_stale(pgdata: Path, *lock_files: Path) -> None:
    """Remove those lock files whose number now belongs to another process, or to a zombie.

    Postgres copes with a dead pid by itself, but takes any live process of that number for a server. It still
    refuses to start while backends of a killed server are attached to the shared memory of this directory.
    """
    for lock_file in lock_files:
        try:
            pid = int(lock_file.read_text().split()[0])
        except (FileNotFoundError, IndexError, ValueError):
            continue
        if alive(pid) and str(pgdata) not in command_line(pid):
            lock_file.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process of this number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def command_line(pid: int) -> str:
    """The command line of a process; empty when it is gone or a zombie."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return ""
    ps = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return ps.stdout
