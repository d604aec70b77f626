from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli import spanledger
from app.database import Database
from telemetry.aside import set_aside
from telemetry.segment import EXECUTIONS, STEPS, VERSION, Segment
from telemetry.spool import Spool
from tests.app.admin_client import get
from tests.telemetry.stored import END, TRACE, execution, step

AWAY = Database("postgresql://127.0.0.1:1/away")
URL = "/api/admin/rejected"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """With three rows set aside, the last of which has no readable line."""
    spool = Spool(tmp_path / "spool")
    set_aside(spool.directory, EXECUTIONS, execution().line(), "data", "bad")
    set_aside(spool.directory, STEPS, step(agent_name=None).line(), "timestamp", "too old")
    set_aside(
        spool.directory,
        EXECUTIONS,
        execution().line().replace(f"{END:%Y-%m-%d %H:%M:%S.%f}+00".encode(), b"soon"),
        "data",
        "?",
    )
    spool.close()
    return tmp_path


@pytest.mark.anyio
async def test_rows_that_were_set_aside_are_listed_without_a_database(data_dir: Path) -> None:
    answer = await get(AWAY, URL, data_dir=data_dir)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    data = answer.json()["data"]
    times = [row.pop("at") for row in data]
    assert times == sorted(times, reverse=True)
    assert all(len(time) == len("2026-11-23T14:00:03.104200Z") for time in times)
    ended = f"{END:%Y-%m-%dT%H:%M:%S.%fZ}"
    same = {"version": VERSION, "trace_id": TRACE}
    a1 = same | {"table": EXECUTIONS, "reason": "data", "span_id": "00000000000000a1", "agent_name": "tutor"}
    b1 = same | {"table": STEPS, "reason": "timestamp", "span_id": "00000000000000b1", "agent_name": None}
    assert answer.json()["next_cursor"] is None
    assert data == [
        a1 | {"detail": "?", "created_at": "soon"},
        b1 | {"detail": "too old", "created_at": ended},
        a1 | {"detail": "bad", "created_at": ended},
    ]


@pytest.mark.anyio
async def test_page_by_page(data_dir: Path) -> None:
    details, cursor = [], ""
    for _ in range(3):
        answer = (await get(AWAY, f"{URL}?limit=1{cursor}", data_dir=data_dir)).json()
        details += [row["detail"] for row in answer["data"]]
        cursor = f"&cursor={answer['next_cursor']}"
    assert (details, cursor) == (["?", "too old", "bad"], "&cursor=None")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("query", "token", "status"),
    [
        ("?cursor=1a2b-0", "admin-token-0123456789", 400),
        ("?limit=0", "admin-token-0123456789", 422),
        ("?limit=501", "admin-token-0123456789", 422),
        ("", None, 403),
    ],
)
async def test_problems(data_dir: Path, query: str, token: str | None, status: int) -> None:
    answer = await get(AWAY, URL + query, token, data_dir=data_dir)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def run(monkeypatch: pytest.MonkeyPatch, data_dir: Path, *options: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `spanledger replay-rejected`."""
    monkeypatch.setenv("SPANLEDGER_DATA_DIR", str(data_dir))
    result = CliRunner().invoke(spanledger, ["replay-rejected", *options])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_puts_rows_back(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, data_dir, "--dry-run") == (0, "would be put back: 3\n", "")
    assert run(monkeypatch, data_dir, "--reason", "timestamp") == (0, "left: 2\nput back: 1\n", "")
    assert run(monkeypatch, data_dir) == (0, "put back: 2\n", "")
    assert run(monkeypatch, data_dir) == (0, "Nothing is set aside.\n", "")
    spool = Spool(data_dir / "spool")
    lines = [
        line for segment in spool.ready() for table in (EXECUTIONS, STEPS) for line in segment.read(table).split(b"\n")
    ]
    spool.close()
    assert len([line for line in lines if line]) == 3


def test_a_disk_that_refuses(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(segment: Segment, lines: dict[str, bytes]) -> None:
        raise OSError(28, "No space left on device", str(segment.directory))

    monkeypatch.setattr(Segment, "write", full)
    code, out, err = run(monkeypatch, data_dir)
    assert (code, out, err.endswith(" cannot be used (No space left on device)\n")) == (2, "", True)
    assert run(monkeypatch, data_dir, "--dry-run")[1] == "would be put back: 3\n"


def test_no_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"spanledger: {tmp_path}/spool does not exist; is SPANLEDGER_DATA_DIR the service's?\n"
    assert run(monkeypatch, tmp_path) == (2, "", said)
