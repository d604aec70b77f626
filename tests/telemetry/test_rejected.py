"""Rows that were set aside are listed newest first, and go back where they came from: none lost, none twice."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.database import Database
from telemetry import aside
from telemetry import rejected as rejected_module
from telemetry.aside import REJECTED
from telemetry.rejected import Rejected
from telemetry.segment import EXECUTIONS, STEPS, VERSION, Segment
from telemetry.spool import Spool
from tests.telemetry.stored import EXECUTION_ROW, TRACE, execution, rows, sink, step

A1, A2, A3 = (f"00000000000000a{number}" for number in (1, 2, 3))


@contextmanager
def spooling(directory: Path) -> Iterator[Spool]:
    spool = Spool(directory)
    try:
        yield spool
    finally:
        spool.close()


def set_aside(directory: Path, *span_ids: str, reason: str = "data") -> None:
    with spooling(directory) as spool:
        for span_id in span_ids:
            aside.set_aside(spool.directory, EXECUTIONS, execution(span_id).line(), reason, f"why {span_id}")


def listed(directory: Path, limit: int = 100) -> list[str]:
    """Span ids over all pages."""
    found, cursor = [], None
    while True:
        page, cursor = Rejected(directory).page(limit, cursor)
        assert len(page) == limit or cursor is None
        found += [row["span_id"] for row in page]
        if cursor is None:
            return found


def waiting(directory: Path) -> list[bytes]:
    """Lines of the spool."""
    with spooling(directory) as spool:
        return [line for segment in spool.ready() for line in segment.read(EXECUTIONS).splitlines(keepends=True)]


# Reading


def test_a_record_says_which_row_it_is_and_why(tmp_path: Path) -> None:
    with spooling(tmp_path) as spool:
        aside.set_aside(spool.directory, STEPS, step(agent_name="tab\tnl\nback\\").line(), "constraint", "so it is")
        aside.set_aside(spool.directory, EXECUTIONS, b"t\tabc\n", "data", "too short")
    page, cursor = Rejected(tmp_path).page(10)
    assert cursor is None
    assert [record.pop("at") > 1.7e9 for record in page] == [True, True]
    first = {"table": EXECUTIONS, "reason": "data", "detail": "too short", "version": VERSION, "trace_id": "abc"}
    assert page == [
        first | {"span_id": None, "agent_name": None, "created_at": None},
        {
            **{"table": STEPS, "reason": "constraint", "detail": "so it is", "version": VERSION, "trace_id": TRACE},
            **{"span_id": "00000000000000b1", "agent_name": "tab\tnl\nback\\"},
            "created_at": f"{EXECUTION_ROW['created_at']:%Y-%m-%d %H:%M:%S.%f}+00",
        },
    ]


@pytest.mark.parametrize("block", [1, 100, 1 << 16])
@pytest.mark.parametrize("limit", [1, 2, 6, 7, 8])
def test_pages_go_back_through_the_predecessor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, block: int
) -> None:
    monkeypatch.setattr(rejected_module, "_BLOCK", block)
    set_aside(tmp_path, *"1234")
    (tmp_path / REJECTED).rename(tmp_path / "rejected.1.ndjson")
    set_aside(tmp_path, *"567")
    assert listed(tmp_path, limit) == list("7654321")


def test_records_that_arrive_and_files_that_turn_displace_nothing(tmp_path: Path) -> None:
    set_aside(tmp_path, *"123")
    page, cursor = Rejected(tmp_path).page(1)
    set_aside(tmp_path, "4")
    (tmp_path / REJECTED).rename(tmp_path / "rejected.1.ndjson")
    set_aside(tmp_path, "5")
    rest, end = Rejected(tmp_path).page(10, cursor)
    assert ([row["span_id"] for row in page + rest], end) == (["3", "2", "1"], None)


def test_a_file_that_turns_while_it_is_read_is_read_once(tmp_path: Path) -> None:
    set_aside(tmp_path, "0")
    (tmp_path / REJECTED).rename(tmp_path / "rejected.1.ndjson")
    set_aside(tmp_path, *"12")
    lines = Rejected(tmp_path)._newest_first(None)
    found = [next(lines)]
    (tmp_path / REJECTED).rename(tmp_path / "rejected.1.ndjson")
    found += lines
    assert [json.loads(line)["detail"] for _, line in found] == ["why 2", "why 1"]


def test_nothing_is_set_aside(tmp_path: Path) -> None:
    assert Rejected(tmp_path / "none").page(1) == ([], None)
    assert Rejected(tmp_path).put_back() == Counter()


@pytest.mark.parametrize("cursor", ["", "1", "x-1", "1-x", "1-2-3", "0-0", "{inode:x}-fffff"])
def test_a_cursor_that_is_none_of_ours(tmp_path: Path, cursor: str) -> None:
    set_aside(tmp_path, A1)
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        Rejected(tmp_path).page(1, cursor.format(inode=(tmp_path / REJECTED).stat().st_ino))


def test_what_is_no_record_is_left_out_and_stays(tmp_path: Path) -> None:
    set_aside(tmp_path, A1)
    odd = [b"\n", b"null\n", b"{}\n", b'{"at": 1.0, "table": "other", "line": ""}\n', b'{"at": 1.0, "table": "ste']
    with (tmp_path / REJECTED).open("ab") as file:
        file.writelines(odd)
    assert listed(tmp_path) == [A1]
    assert Rejected(tmp_path).put_back() == {"put back": 1, "unreadable": 5}
    assert (tmp_path / REJECTED).read_bytes() == b"".join(odd)


# Putting back


def test_rows_are_stored_once_their_cause_is_gone(database: Database, tmp_path: Path) -> None:
    with sink(tmp_path, database.sink_connection) as drained, drained._connect() as owner:
        owner.execute("RESET ROLE")
        owner.execute("ALTER TABLE agent_executions ADD CONSTRAINT odd CHECK (agent_name <> 'odd') NOT VALID")
        owner.commit()
        drained.put(execution(), execution(A2, agent_name="odd"), execution(A3, agent_name="odd"))
        assert drained.drain()
        assert (listed(tmp_path), drained.stored[EXECUTIONS]) == ([A3, A2], 1)

        assert Rejected(tmp_path).put_back() == {"put back": 2}  # too early: they come back
        assert drained.drain()
        assert (listed(tmp_path), drained.rejected["constraint"]) == ([A3, A2], 4)

        owner.execute("ALTER TABLE agent_executions DROP CONSTRAINT odd")
        owner.commit()
        assert Rejected(tmp_path).put_back(reason="constraint") == {"put back": 2}
        assert listed(tmp_path) == []
        assert drained.drain()
    assert rows(database, EXECUTIONS) == [
        EXECUTION_ROW,
        *(EXECUTION_ROW | {"span_id": span_id, "agent_name": "odd"} for span_id in (A2, A3)),
    ]


def test_a_dry_run_only_counts(tmp_path: Path) -> None:
    set_aside(tmp_path, A1)
    set_aside(tmp_path, A2, A3, reason="timestamp")
    before = (tmp_path / REJECTED).read_bytes()
    assert Rejected(tmp_path).put_back(dry_run=True) == {"put back": 3}
    assert Rejected(tmp_path).put_back(dry_run=True, reason="data") == {"put back": 1, "left": 2}
    assert ((tmp_path / REJECTED).read_bytes(), waiting(tmp_path)) == (before, [])


def test_only_what_was_taken_leaves_the_file(tmp_path: Path) -> None:
    set_aside(tmp_path, A1)
    set_aside(tmp_path, A2, reason="timestamp")
    kept = (tmp_path / REJECTED).read_bytes().splitlines(keepends=True)[1]
    other = json.dumps({**json.loads(kept), "reason": "data", "version": "v0"}).encode() + b"\n"
    with (tmp_path / REJECTED).open("ab") as file:
        file.write(other)
    assert Rejected(tmp_path).put_back(reason="data") == {"put back": 1, "left": 1, "other version": 1}
    assert (tmp_path / REJECTED).read_bytes() == kept + other
    assert sorted(path.name for path in tmp_path.glob("rejected*")) == [REJECTED]
    assert waiting(tmp_path) == [execution(A1).line()]


@pytest.mark.parametrize("bytes_a_segment", [1, 1 << 20])
def test_many_rows_make_several_segments_that_were_observed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_a_segment: int
) -> None:
    monkeypatch.setattr(rejected_module, "SEGMENT_BYTES", bytes_a_segment)
    set_aside(tmp_path, A1, A2, A3)
    with spooling(tmp_path) as spool:
        aside.set_aside(spool.directory, STEPS, step().line(), "data", "")
        assert Rejected(tmp_path).put_back() == {"put back": 4}
        segments = spool.ready()
        assert len(segments) == (4 if bytes_a_segment == 1 else 1)
        assert {oct(segment.path(EXECUTIONS).stat().st_mode) for segment in segments} == {"0o100600"}
        assert [segment.mark_seen() for segment in segments] == [False] * len(segments)
    assert waiting(tmp_path) == [execution(span_id).line() for span_id in (A1, A2, A3)]


def during(monkeypatch: pytest.MonkeyPatch, happening: Callable[[], None]) -> None:
    """Let something happen when the first row was put back."""
    write = Segment.write

    def writing(segment: Segment, lines: dict[str, bytes]) -> None:
        write(segment, lines)
        monkeypatch.setattr(Segment, "write", write)
        happening()

    monkeypatch.setattr(Segment, "write", writing)


def test_rows_set_aside_meanwhile_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_aside(tmp_path, A1)
    during(monkeypatch, lambda: set_aside(tmp_path, A2))
    assert Rejected(tmp_path).put_back() == {"put back": 1}
    assert (listed(tmp_path), waiting(tmp_path)) == ([A2], [execution(A1).line()])


def test_a_row_written_by_who_had_opened_the_file_before_is_put_back_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_aside(tmp_path, A2)
    (late,) = (tmp_path / REJECTED).read_bytes().splitlines(keepends=True)
    (tmp_path / REJECTED).unlink()
    set_aside(tmp_path, A1)
    with (tmp_path / REJECTED).open("ab", buffering=0) as file:

        def append() -> None:
            file.write(late)

        during(monkeypatch, append)
        assert Rejected(tmp_path).put_back() == {"put back": 2}
    assert (listed(tmp_path), waiting(tmp_path)) == ([], [execution(A1).line(), execution(A2).line()])


def test_two_at_once_put_each_row_back_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_aside(tmp_path, A1, A2)
    other: list[Counter[str]] = []
    during(monkeypatch, lambda: other.append(Rejected(tmp_path).put_back()))
    assert Rejected(tmp_path).put_back() == {"put back": 2}
    assert (other, len(waiting(tmp_path)), listed(tmp_path)) == ([Counter()], 2, [])


def test_after_a_crash_the_rest_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    set_aside(tmp_path, A1, A2)
    with monkeypatch.context() as patch:
        patch.setattr(rejected_module, "SEGMENT_BYTES", 1)
        during(patch, kill)
        with pytest.raises(Killed):
            Rejected(tmp_path).put_back()
    assert listed(tmp_path) == [A2, A1]
    assert Rejected(tmp_path).put_back() == {"put back": 2}
    assert (listed(tmp_path), list(tmp_path.glob("rejected*"))) == ([], [tmp_path / REJECTED])
    lines = waiting(tmp_path)
    assert (set(lines), len(lines)) == ({execution(A1).line(), execution(A2).line()}, 3)  # the sink stores it once
    assert os.stat(tmp_path / REJECTED).st_size == 0
