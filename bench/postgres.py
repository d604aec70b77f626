"""The Postgres servers of the benchmarks: the embedded one, and the system's Postgres 15 where there is one."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from app.embedded import EmbeddedPostgres

POSTGRES15 = Path("/usr/lib/postgresql/15/bin")


@contextmanager
def embedded() -> Iterator[str]:
    """The superuser's URL of a new embedded server, as the service starts it."""
    with _directory() as directory:
        server = EmbeddedPostgres(directory)
        try:
            yield server.start()
        finally:
            server.stop()


@contextmanager
def postgres15() -> Iterator[str]:
    """The superuser's URL of a new Postgres 15 with the settings it has by itself."""
    with _directory() as directory:
        account: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(directory, user.pw_uid, user.pw_gid)
            account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

        def run(program: str, *arguments: str) -> None:
            command = [str(POSTGRES15 / program), "-D", str(directory / "data"), *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=directory, **account)

        run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")
        listen = f"-c listen_addresses='' -c unix_socket_directories={directory} -c unix_socket_permissions=0700"
        run("pg_ctl", "start", "-w", "-l", str(directory / "log"), "-o", listen)
        try:
            yield f"postgresql+psycopg://postgres@/postgres?host={directory}&port=5432"
        finally:
            run("pg_ctl", "stop", "-w", "-m", "fast")


def servers() -> dict[str, Callable[[], AbstractContextManager[str]]]:
    """By name, those that are there."""
    found: dict[str, Callable[[], AbstractContextManager[str]]] = {"embedded": embedded}
    return found | {"Postgres 15": postgres15} if POSTGRES15.is_dir() else found


@contextmanager
def _directory() -> Iterator[Path]:
    """On a disk; passable, for as root the server is another user."""
    directory = Path(tempfile.mkdtemp(prefix="spanledger-bench-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
