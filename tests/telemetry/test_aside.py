"""Rows that are set aside stay readable, and are bounded."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from telemetry import aside
from telemetry.aside import set_aside
from telemetry.spool import EXECUTIONS, STEPS
from tests.conftest import ROOT


def test_rejected_rows_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.5)
    set_aside(tmp_path, EXECUTIONS, b"a\tb\xff\n", "data", "no 'such' thing\n")
    set_aside(tmp_path, STEPS, b"\xf0\x9f\xa6\x89\n", "timestamp", "")
    assert [json.loads(line) for line in (tmp_path / "rejected.ndjson").read_text().splitlines()] == [
        {
            "at": 1_700_000_000.5,
            "table": "executions",
            "reason": "data",
            "detail": "no 'such' thing\n",
            "version": "v1",
            "line": "a\tb\ufffd\n",
        },
        {"at": 1_700_000_000.5, "table": "steps", "reason": "timestamp", "detail": "", "version": "v1", "line": "🦉\n"},
    ]
    assert (tmp_path / "rejected.ndjson").stat().st_mode & 0o777 == 0o600


def test_rejected_rows_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "REJECTED_BYTES", 300)
    for number in range(12):
        set_aside(tmp_path, EXECUTIONS, b"%d\n" % number, "data", "x")
    kept = {
        path.name: [json.loads(line)["line"] for line in path.read_text().splitlines()]
        for path in tmp_path.iterdir()
        if path.is_file()
    }
    assert set(kept) == {"rejected.ndjson", "rejected.1.ndjson"}
    assert (
        kept["rejected.1.ndjson"] + kept["rejected.ndjson"]
        == [f"{number}\n" for number in range(12)][-sum(map(len, kept.values())) :]
    )
    assert sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file()) < 900


def test_a_row_that_was_not_written_whole_is_an_error(tmp_path: Path) -> None:
    script = """if True:
    import resource, sys
    from pathlib import Path
    from telemetry.aside import set_aside
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, resource.RLIM_INFINITY))
    try:
        set_aside(Path(sys.argv[1]), "steps", b"x\\n", "data", "")
    except OSError as error:
        print(error.strerror)
    """
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "No space left on device\n"
