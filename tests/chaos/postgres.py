"""A Postgres 15 on a loopback port, to be killed, stopped and started again."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from app import postmaster
from app.database import Database
from tests.app.service import free_port
from tests.components import component
from tests.conftest import memory_disk, reachable_directory

START_SECONDS = 30.0


class Postgres:
    """The server of one directory; `database` hands out migrated, empty databases of it."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._data = directory / "data"
        self._binaries = component("postgres15")
        self._numbers = count()
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(directory, account.pw_uid, account.pw_gid)
            self._as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", check=True)
        self.start()
        self._execute("CREATE DATABASE migrated")
        migrated = Database(self.url("migrated"))
        migrated.migrate()
        migrated.dispose()

    def url(self, name: str, port: int | None = None) -> str:
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/{name}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The name of a new one; dropped afterwards."""
        name = f"chaos_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE migrated STRATEGY file_copy")
        try:
            yield name
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def start(self) -> None:
        """Start it; what a killed one left in shared memory may be in the way for a moment."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        deadline = time.monotonic() + START_SECONDS
        while self._run("pg_ctl", "start", "-w", "-l", str(self._directory / "log"), "-o", options):
            assert time.monotonic() < deadline, (self._directory / "log").read_text()[-2000:]
            time.sleep(0.2)

    def shut_down(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-m", "fast", check=True)

    def kill(self) -> None:
        """SIGKILL for the postmaster, and so the end of all its backends."""
        os.kill(self._pid(), signal.SIGKILL)
        while postmaster.running(self._data) is not None:
            time.sleep(0.02)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It and all its backends stand still, with their sockets open."""
        pids = [self._pid(), *self._children()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def terminate_backends(self) -> int:
        """All but ours; how many."""
        ended = self._execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return int(ended[0][0])

    def stop(self) -> None:
        if postmaster.running(self._data) is not None:
            self._run("pg_ctl", "stop", "-w", "-m", "immediate")

    def _pid(self) -> int:
        running = postmaster.running(self._data)
        assert running is not None
        return running.pid

    def _children(self) -> list[int]:
        pid = self._pid()
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def _execute(self, statement: str) -> list[Any]:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _run(self, program: str, *arguments: str, check: bool = False) -> int:
        command = [str(self._binaries / program), "-D", str(self._data), *arguments]
        output = subprocess.DEVNULL  # what it says is in its log
        options = {"check": check, "cwd": self._directory, "stdout": output, "stderr": output, **self._as_user}
        return subprocess.run(command, **options).returncode


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server of our own, in memory where there is room; it ends with the block."""
    with reachable_directory(memory_disk()) as directory:
        server = Postgres(directory)
        try:
            yield server
        finally:
            server.stop()
