"""Real Postgres servers for the tests: one embedded (and, where a test asks, one Postgres 15) per worker."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, make_url

from app import postmaster
from app.database import Database
from app.embedded import EmbeddedPostgres, server_account
from tests.components import component

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def reachable_directory(parent: Path | None = None) -> Iterator[Path]:
    """A temporary directory that the database's own user may pass: as root, pytest's are closed to it."""
    directory = Path(tempfile.mkdtemp(prefix="spanledger-test-", dir=parent))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)  # the watcher may have been faster


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A path for SPANLEDGER_DATA_DIR, not made yet, where an embedded server can run also as root."""
    with reachable_directory(memory_disk()) as directory:
        yield directory / "data"


def memory_disk() -> Path | None:
    """Where a database is made ten times as fast as on a disk, if there is room for many."""
    shm = Path("/dev/shm")
    return shm if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2 << 30 else None


@contextmanager
def stopped_with_us(pid: int, directory: Path) -> Iterator[None]:
    """Stop the server of `directory` even when this process is killed: the watcher's stdin ends with us."""
    watch = 'cat >/dev/null; ps -o args= -p "$0" | grep -qF "$1" && kill -INT "$0"; rm -rf "$1"'
    command = ["sh", "-c", watch, str(pid), str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watcher:
        yield
        assert watcher.stdin is not None
        watcher.stdin.close()


def owner(data_dir: Path, *then: str, **options: Any) -> subprocess.Popen[str]:
    """Another process that starts the server and then does something."""
    script = f"""
        import os, signal
        from pathlib import Path
        from app.embedded import EmbeddedPostgres, server_account
        url = EmbeddedPostgres(Path({str(data_dir)!r})).start()
        print(url, flush=True)
    """
    lines = textwrap.dedent(script) + "\n".join(then)
    python = options.pop("python", sys.executable)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.Popen(
        [python, "-c", lines], stdout=subprocess.PIPE, text=True, env=environment, cwd="/", **options
    )


@pytest.fixture
def ordinary_user() -> dict[str, Any]:
    """How Popen starts a Python as somebody else; ours may lie below root's home."""
    account = server_account()
    options: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    packages = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            probe = [python, "-c", "import sys, app.embedded; sys.exit(sys.version_info < (3, 11))"]
            env = {"PYTHONPATH": ":".join(packages)}
            if subprocess.run(probe, env=env, cwd="/", check=False, **options).returncode == 0:
                return {"python": python, "env": env, **options}
        except PermissionError:
            continue
    pytest.skip("no Python here that an ordinary user may run")


class Server:
    """A running Postgres that hands out migrated, empty databases: copies of one template."""

    def __init__(self, superuser_url: str) -> None:
        self.url = make_url(superuser_url)
        self._numbers = count()
        # These databases live for seconds: nothing of them has to survive a power cut.
        self.execute("ALTER SYSTEM SET fsync = off")
        self.execute("SELECT pg_reload_conf()")
        self.execute("CREATE DATABASE migrated")
        with self._opened("migrated") as database:
            database.migrate()

    def execute(self, statement: str, name: str = "postgres") -> None:
        """Run one statement as superuser in the database `name`."""
        with psycopg.connect(**self.connect_arguments(name), autocommit=True) as connection:
            connection.execute(statement.encode())

    def connect_arguments(self, name: str) -> dict[str, Any]:
        """How psycopg connects to the database `name` as superuser."""
        return {"user": self.url.username, "dbname": name, **self.url.query}

    @contextmanager
    def database(self, template: str = "migrated") -> Iterator[Database]:
        """A database of its own, dropped afterwards."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            with self._opened(name) as database:
                yield database
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def _opened(self, name: str) -> Iterator[Database]:
        url: URL = self.url.set(database=name)
        database = Database(url.render_as_string(hide_password=False))
        try:
            yield database
        finally:
            database.dispose()


@contextmanager
def embedded() -> Iterator[str]:
    """The superuser's URL of an embedded server."""
    with reachable_directory(memory_disk()) as directory:
        postgres = EmbeddedPostgres(directory)
        url = postgres.start()
        running = postmaster.running(postgres.pgdata)
        assert running is not None
        with stopped_with_us(running.pid, directory):
            try:
                yield url
            finally:
                postgres.stop()


@contextmanager
def postgres15() -> Iterator[str]:
    """The superuser's URL of the system's Postgres 15, running in a directory of its own."""
    with cluster15("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync") as (url, _):
        yield url


@contextmanager
def cluster15(program: str, *arguments: str) -> Iterator[tuple[str, Callable[..., None]]]:
    """The superuser's URL of a Postgres 15 whose directory `program` makes, and what runs another program on it."""
    binaries = component("postgres15")
    account = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    with reachable_directory(memory_disk()) as directory:
        as_server_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(directory, account.pw_uid, account.pw_gid)
            as_server_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

        def run(program: str, *arguments: str) -> None:
            command = [str(binaries / program), "-D", str(directory / "data"), *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=directory, **as_server_user)

        run(program, *arguments)
        settings = f"-c listen_addresses='' -c unix_socket_directories={directory} -c unix_socket_permissions=0700"
        run("pg_ctl", "start", "-w", "-l", str(directory / "log"), "-o", settings)
        running = postmaster.running(directory / "data")
        assert running is not None
        with stopped_with_us(running.pid, directory):
            try:
                yield f"postgresql+psycopg://postgres@/postgres?host={directory}", run
            finally:
                run("pg_ctl", "stop", "-w", "-m", "immediate")


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[Server]:
    with embedded() as url:
        yield Server(url)


@pytest.fixture(scope="session")
def postgres15_server() -> Iterator[Server]:
    with postgres15() as url:
        yield Server(url)


@pytest.fixture(scope="session")
def postgres_url(embedded_server: Server) -> str:
    """The superuser's URL of the embedded server."""
    return embedded_server.url.render_as_string(hide_password=False)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """The embedded server; parametrised indirectly with "embedded" and "postgres15", each of the two."""
    found: Server = request.getfixturevalue(f"{getattr(request, 'param', 'embedded')}_server")
    return found


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """A migrated, empty database of the test's own."""
    with server.database() as database:
        yield database
