from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.data_dir import MODE, DataDir
from app.settings import StartError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_makes_the_directory_and_its_parents_closed_to_others(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        DataDir(tmp_path / "a/b").acquire().release()
    finally:
        os.umask(old)
    assert (mode(tmp_path / "a"), mode(tmp_path / "a/b"), mode(tmp_path / "a/b/lock")) == (MODE, MODE, 0o600)


def test_a_second_owner_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    first = DataDir(tmp_path).acquire()
    with pytest.raises(StartError) as refused:
        DataDir(tmp_path).acquire()
    assert str(refused.value) == (
        f"another spanledger (pid {os.getpid()}) uses {tmp_path}; stop it, or set SPANLEDGER_DATA_DIR elsewhere"
    )
    first.release()
    first.release()
    DataDir(tmp_path).acquire().release()


def test_a_killed_owner_leaves_no_lock_and_its_children_do_not_keep_it(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, os, pathlib\n"
        "from app.data_dir import DataDir\n"
        "DataDir(pathlib.Path(sys.argv[1])).acquire()\n"
        "child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, close_fds=False)\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    owner = subprocess.run([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, check=False)
    try:
        assert owner.returncode == -9
        DataDir(tmp_path).acquire().release()
    finally:
        os.kill(int(owner.stdout), 9)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError) as refused:
        DataDir(tmp_path / "file/data").acquire()
    assert str(refused.value) == (
        f"{tmp_path}/file/data is not writable (Not a directory); "
        "change its owner, or set SPANLEDGER_DATA_DIR elsewhere"
    )


def test_the_admin_token_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    token = directory.admin_token()
    assert len(token) == 43
    assert directory.admin_token() == token
    assert directory.token_file.read_text() == f"{token}\n"
    assert mode(directory.token_file) == 0o600
    assert os.listdir(tmp_path) == ["admin-token"]


def test_an_empty_token_file_never_counts_as_a_token(tmp_path: Path) -> None:
    (tmp_path / "admin-token").write_text("\n")
    assert len(DataDir(tmp_path).admin_token()) == 43


def test_a_token_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "admin-token").mkdir()
    with pytest.raises(StartError, match=r"/admin-token is unusable \(.*\); delete it to get a new one$"):
        DataDir(tmp_path).admin_token()
