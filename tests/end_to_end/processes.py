"""Which processes belong to a data directory, found by walking /proc."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path


def belonging_to(data_dir: Path) -> dict[int, str]:
    """Pid -> command of everything that names the directory in its command line or environment, or stands in it.

    The service has it in its environment, the database server in its command line, its children stand in it.
    """
    name = os.fsencode(data_dir)
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            command = (process / "cmdline").read_bytes()
            places = [command, (process / "environ").read_bytes(), os.fsencode(os.readlink(process / "cwd"))]
            if int(process.name) != os.getpid() and command and any(name in place for place in places):
                found[int(process.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def postmasters(data_dir: Path) -> list[int]:
    """The database servers of the directory, without their children."""
    return [pid for pid, command in belonging_to(data_dir).items() if f"-D {data_dir}/postgres/data" in command]


def kill_all(data_dir: Path) -> set[int]:
    """SIGKILL for the service, the database server and each of its children, all at the same moment."""
    pids = set(belonging_to(data_dir))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while belonging_to(data_dir):
        assert time.monotonic() < deadline, belonging_to(data_dir)
        time.sleep(0.02)
    return pids
