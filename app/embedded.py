"""The embedded Postgres: a server of our own, driven with initdb and pg_ctl, reached by Unix socket only."""

from __future__ import annotations

import logging
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app import postgres_wheel, postmaster
from app.postgres_wheel import MAJOR_VERSION

logger = logging.getLogger(__name__)

DATABASE = "spanledger"
SERVER_USER = "spanledger"
PORT = 5432  # only a part of the socket's name: nothing listens on TCP
SOCKET_DIR_MAX = 103 - len(f"/.s.PGSQL.{PORT}")  # bytes; macOS has the shortest sun_path, 104 with its NUL
START_TIMEOUT = 60.0  # seconds; crash recovery is part of it
# A data directory with nothing else in it is ours, and may be opened (o+x) to the server's user.
OUR_FILES = frozenset({"admin-token", "lock", "postgres", "spool"})
LOG_MAX = 10_000_000  # bytes; a longer log is set aside at the next start

# For one small machine: few processes, little memory, durable. Errors are logged without statement, detail
# and context, because those hold the payloads of users.
SERVER_OPTIONS = {
    "listen_addresses": "",
    "port": PORT,
    "unix_socket_permissions": "0700",
    "max_connections": 50,
    "shared_buffers": "64MB",
    "huge_pages": "off",
    "io_method": "sync",
    "wal_level": "minimal",
    "max_wal_senders": 0,
    "max_logical_replication_workers": 0,
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}


class EmbeddedPostgresError(Exception):
    """The embedded server cannot run; the message is one line that says why and what to do."""


class EmbeddedPostgres:
    """A Postgres server of our own below `data_dir`, reached through a Unix socket only its owner may enter.

    As root the server runs as the owner of `data_dir/postgres`, at first the system user `spanledger`.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.absolute()
        self.home = self.data_dir / "postgres"
        self.pgdata = self.home / "data"
        self.log = self.home / "log"
        self.socket_link = self.home / "socket-link"
        self._owned = False
        self._as_server_user: dict[str, Any] = {}  # for subprocess.run

    def start(self) -> str:
        """Start the server, or adopt the one a killed owner left running, and return its SQLAlchemy URL.

        Raises EmbeddedPostgresError.
        """
        try:
            self._make_home()
            self._check_version()
            binaries = self._binaries()
            if not self.pgdata.exists():
                self._initdb(binaries)
            self._owned = True
            try:
                socket_dir = self._run_server(binaries)
            except BaseException:
                self.stop()
                raise
        except OSError as error:
            raise EmbeddedPostgresError(
                f"cannot keep the embedded database in {self.data_dir} ({error.strerror or error}): "
                "set SPANLEDGER_DATA_DIR to a directory that you may write to"
            ) from error
        return url_of(socket_dir)

    def stop(self) -> None:
        """Stop the server that start() started or adopted; does nothing when there is none."""
        if not self._owned:
            return
        self._owned = False
        for mode, seconds in (("fast", 10), ("immediate", 5)):
            if postmaster.running(self.pgdata) is None:
                break
            arguments = ["stop", "-D", str(self.pgdata), "-m", mode, "-w", "-t", str(seconds)]
            self._run(self._binaries() / "pg_ctl", *arguments)
        with suppress(OSError):
            os.rmdir(os.readlink(self.socket_link))

    def _make_home(self) -> None:
        """Make `data_dir` and `data_dir/postgres`, and find out who runs the server."""
        root = os.geteuid() == 0
        for directory in reversed([self.data_dir, *self.data_dir.parents]):
            if not directory.exists():
                directory.mkdir()
                # The server's user passes through on its way to its own directory; nobody may list it.
                directory.chmod(0o711 if root else 0o700)
        if not self.home.exists():
            self.home.mkdir(mode=0o700)
        if not root:
            if self.home.stat().st_uid != os.geteuid():
                raise PermissionError(f"{self.home} belongs to another user")
            return
        if self.home.stat().st_uid == 0:
            account = server_account()
            os.chown(self.home, account.pw_uid, account.pw_gid)
        owner = self.home.stat()
        self._as_server_user = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        if self._cannot_reach_home() and OUR_FILES.issuperset(os.listdir(self.data_dir)):
            self.data_dir.chmod(0o711)
        if self._cannot_reach_home():
            raise EmbeddedPostgresError(
                f"the database's user (uid {owner.st_uid}) cannot reach {self.home}: set SPANLEDGER_DATA_DIR "
                f"to a directory outside of private ones, or let others pass (chmod o+x on its parents)"
            )

    def _cannot_reach_home(self) -> bool:
        return self._run(Path("/bin/sh"), "-c", 'cd "$0"', str(self.home)).returncode != 0

    def _check_version(self) -> None:
        with suppress(FileNotFoundError):
            found = (self.pgdata / "PG_VERSION").read_text()[:8].strip()
            if found != MAJOR_VERSION:
                raise EmbeddedPostgresError(
                    f"{self.pgdata} was made by Postgres {found}, this release embeds {MAJOR_VERSION}: "
                    f"move it away to start empty, or serve it with Postgres {found} and set DATABASE_URL"
                )

    def _binaries(self) -> Path:
        """Where initdb and pg_ctl are; a copy of them if the server's user cannot reach the wheel's."""
        try:
            installed = postgres_wheel.binaries()
            if not self._as_server_user or self._can_execute(installed / "initdb"):
                return installed
            return postgres_wheel.binaries_copied_into(self.data_dir)
        except ModuleNotFoundError as error:
            raise EmbeddedPostgresError(f"{error}, or set DATABASE_URL") from error

    def _can_execute(self, binary: Path) -> bool:
        try:
            return self._run(binary, "--version").returncode == 0
        except PermissionError:
            return False

    def _initdb(self, binaries: Path) -> None:
        """Make the data directory beside its place and rename it when it is whole: a kill leaves no half."""
        for leftover in self.home.glob("initdb-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished = self.home / f"initdb-{os.getpid()}-{time.monotonic_ns()}"
        initdb = self._run(
            binaries / "initdb",
            f"--pgdata={unfinished}",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--auth-local=trust",
            "--auth-host=reject",
        )
        if initdb.returncode:
            raise EmbeddedPostgresError(f"initdb failed in {self.home}: {last_line(initdb.stderr)}")
        single_user = ["--single", "-D", str(unfinished), "postgres"]
        created = self._run(binaries / "postgres", *single_user, stdin=f"CREATE DATABASE {DATABASE}\n")
        if created.returncode:
            raise EmbeddedPostgresError(f"cannot create the database {DATABASE}: {last_line(created.stderr)}")
        unfinished.rename(self.pgdata)

    def _run_server(self, binaries: Path) -> str:
        """Wait for a ready server of our data directory, starting one if there is none: where it listens."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            running = postmaster.running(self.pgdata)
            if running is None:
                self._pg_ctl_start(binaries, deadline)
            elif running.status == "ready":
                return running.socket_dir
            else:  # another owner's server is starting, or stopping
                time.sleep(0.05)
        raise EmbeddedPostgresError(f"Postgres was not ready within {START_TIMEOUT:.0f} s, see {self.log}")

    def _pg_ctl_start(self, binaries: Path, deadline: float) -> None:
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_MAX:
                self.log.replace(self.log.with_suffix(".1"))
        already_logged = self.log.stat().st_size if self.log.exists() else 0
        socket_dir = self._socket_dir()
        socket_lock = Path(socket_dir, f".s.PGSQL.{PORT}.lock")
        postmaster.forget_stale(self.pgdata, self.pgdata / "postmaster.pid", socket_lock)
        options = {**SERVER_OPTIONS, "unix_socket_directories": socket_dir}
        settings = " ".join(f"-c {name}={shlex.quote(str(value))}" for name, value in options.items())
        start = ["start", "-D", str(self.pgdata), "-l", str(self.log), "-o", settings]
        wait = ["-w", "-t", str(max(1, int(deadline - time.monotonic())))]
        if self._run(binaries / "pg_ctl", *start, *wait).returncode and postmaster.running(self.pgdata) is None:
            log = self.log.read_bytes()[already_logged:].decode(errors="replace")
            reason = last_line("\n".join(re.findall("(?:FATAL|PANIC):.*", log)) or log)
            if "shared memory block" not in reason:
                raise EmbeddedPostgresError(f"Postgres did not start, see {self.log}: {reason}")
            time.sleep(0.2)  # the backends of a killed server are still leaving

    def _socket_dir(self) -> str:
        """A directory of mode 0700 whose path fits a socket's address: ours, or one in /tmp, remembered."""
        own = self.home / "socket"
        if fits_socket_address(own):
            if not own.exists():
                own.mkdir(mode=0o700)
                self._give(own)
            return str(own)
        with suppress(OSError):
            remembered = os.readlink(self.socket_link)
            found = os.lstat(remembered)
            if found.st_mode == stat.S_IFDIR | 0o700 and found.st_uid == self.home.stat().st_uid:
                return remembered
        short = tempfile.mkdtemp(prefix="spanledger-", dir="/tmp")
        self._give(Path(short))
        self.socket_link.unlink(missing_ok=True)
        self.socket_link.symlink_to(short)
        logger.info("The path %s is too long for a socket, the database listens in %s", own, short)
        return short

    def _give(self, path: Path) -> None:
        if self._as_server_user:
            os.chown(path, self._as_server_user["user"], self._as_server_user["group"], follow_symlinks=False)

    def _run(self, program: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program as the server's user, without our environment and away from the terminal's Ctrl-C."""
        return subprocess.run(
            [str(program), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=self.home,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            start_new_session=True,
            check=False,
            **self._as_server_user,
        )


def running_url(data_dir: Path) -> str | None:
    """The URL of the server that another process runs below `data_dir`; None when there is none."""
    running = postmaster.running(data_dir.absolute() / "postgres" / "data")
    return None if running is None else url_of(running.socket_dir)


def url_of(socket_dir: str) -> str:
    """The SQLAlchemy URL of a server that listens there."""
    return f"postgresql+psycopg://postgres@/{DATABASE}?host={quote(socket_dir)}&port={PORT}"


def server_account() -> pwd.struct_passwd:
    """The unprivileged account that runs the server for root; a system user is made when there is none."""
    useradd = shutil.which("useradd", path=f"{os.defpath}:/usr/sbin:/sbin")
    with suppress(KeyError):
        return pwd.getpwnam(SERVER_USER)
    if useradd is not None:
        no_login = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        subprocess.run([useradd, *no_login, SERVER_USER], capture_output=True, check=False)
    for name in (SERVER_USER, "postgres"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedPostgresError(
        f"Postgres refuses to run as root and no user {SERVER_USER} could be made: "
        f"run `useradd --system {SERVER_USER}`, or start Spanledger as an ordinary user"
    )


def fits_socket_address(directory: Path) -> bool:
    """Short enough, and without characters at which Postgres would split a list of directories."""
    path = str(directory)
    return len(os.fsencode(path)) <= SOCKET_DIR_MAX and re.fullmatch(r"[\w./-]+", path, re.ASCII) is not None


def last_line(text: str) -> str:
    """The last line of a program's output that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
