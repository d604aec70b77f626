"""The slots of open runs say the same to another process as to their own, also when that is dead."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import orjson
import pytest

from telemetry import slots as module
from telemetry.slots import OpenRun, Slots, cancel, read, read_counts

SERVICE = ("tutor", None, "1.2", "test", "i-1")
TRACE, OTHER = bytes(range(16)), bytes(range(16, 32))
A, B = b"\0" * 7 + b"a", b"\0" * 7 + b"b"
RUN = OpenRun(
    *(TRACE.hex(), A.hex(), None, None, "outer", "2", 1_000, ("u1", None, "r1"), None, False, SERVICE),
    *(os.getpid(), socket.gethostname(), 5_000),
)


def document(agent: str = "outer", parent: str | None = None) -> bytes:
    return orjson.dumps([agent, "2", parent, parent, "u1", None, "r1"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def slots(path: Path) -> Any:
    made = Slots(path, SERVICE)
    made.beat(5_000)
    yield made
    made.close()


def test_what_is_open_is_read(slots: Slots, path: Path) -> None:
    assert (read(path), len(slots)) == ([], 0)
    outer = slots.take(TRACE + A, 1_000, document())
    inner = slots.take(TRACE + B, 9_000, document("inner", A.hex()))
    assert (outer, inner, len(slots)) == (0, 1, 2)
    assert inner is not None
    slots.note_input(inner, b'{"a":1}')
    nested = RUN._replace(span_id=B.hex(), parent_span_id=A.hex(), parent_agent_span_id=A.hex(), agent_name="inner")
    # It started after the last sign of life, so it was alive then.
    assert read(path) == [RUN, nested._replace(started_at=9_000, input=b'{"a":1}', seen_at=9_000)]
    slots.release(inner, TRACE + B)
    assert (read(path), len(slots)) == ([RUN], 1)


def test_an_input_noted_again_replaces_the_first(slots: Slots, path: Path) -> None:
    slot = slots.take(TRACE + A, 1_000, document())
    assert slot is not None
    slots.note_input(slot, b"[1,2,3]")
    slots.note_input(slot, b"[4]")
    assert [run.input for run in read(path)] == [b"[4]"]


def test_what_does_not_fit_is_left_out(slots: Slots, path: Path) -> None:
    slot = slots.take(TRACE + A, 1_000, document())
    assert slot is not None
    slots.note_input(slot, b"x" * module.SLOT_BYTES)
    assert read(path) == [RUN]
    assert slots.take(TRACE + B, 1_000, document("n" * module.SLOT_BYTES)) is None
    assert (slots.unrecorded, len(slots)) == (1, 1)


def test_more_runs_than_slots_are_counted(slots: Slots, path: Path) -> None:
    ids = [number.to_bytes(8, "big") for number in range(module.COUNT + 2)]
    taken = [slots.take(TRACE + span_id, 1_000, document()) for span_id in ids]
    assert taken == [*range(module.COUNT), None, None]
    assert (slots.unrecorded, len(read(path))) == (2, module.COUNT)
    slots.release(7, TRACE + ids[7])
    assert slots.take(OTHER + A, 1_000, document()) == 7


def test_only_the_run_that_took_it_gives_a_slot_back(slots: Slots, path: Path) -> None:
    """A forked child has a file of its own, and its parent's numbers."""
    slots.release(0, TRACE + A)
    slot = slots.take(TRACE + A, 1_000, document())
    assert slot == 0
    slots.release(slot, TRACE + B)
    assert (read(path), len(slots)) == ([RUN], 1)
    slots.release(slot, TRACE + A)
    slots.release(slot, TRACE + A)
    assert (read(path), len(slots)) == ([], 0)


def test_a_run_is_cancelled_by_whoever_may_write_the_file(slots: Slots, path: Path) -> None:
    slots.take(TRACE + A, 1_000, document())
    slots.take(OTHER + B, 1_000, document())
    assert slots.cancelled() == []
    assert not cancel(path, TRACE.hex(), B.hex())
    assert cancel(path, OTHER.hex(), B.hex())
    assert [run.cancel_requested for run in read(path)] == [False, True]
    assert slots.cancelled() == [(int.from_bytes(OTHER), int.from_bytes(B))]
    assert slots.cancelled() == []


def test_another_run_in_the_same_slot_is_not_cancelled(slots: Slots, path: Path) -> None:
    slots.take(TRACE + A, 1_000, document())
    assert cancel(path, TRACE.hex(), A.hex())
    slots.release(0, TRACE + A)
    assert slots.take(TRACE + B, 1_000, document()) == 0
    assert [run.cancel_requested for run in read(path)] == [False]
    assert slots.cancelled() == [(int.from_bytes(TRACE), int.from_bytes(A))]


@pytest.mark.parametrize("content", [b"", bytes(1 << 20), b"\1" * 64])
def test_a_file_that_is_just_being_made_or_was_never_written_has_no_runs(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert read(path) == []


def test_long_names_leave_the_head_whole(path: Path) -> None:
    slots = Slots(path, ["ünï" * 999] * 5)
    slots.take(TRACE + A, 1_000, document())
    (run,) = read(path)
    assert run.service == (("ünï" * 14)[:40],) * 5
    assert not slots.note_counts(b"x" * 20_000)
    assert slots.note_counts(b"{}")
    assert read_counts(path) == b"{}"
    slots.close()


def test_another_file_takes_over(slots: Slots, path: Path, tmp_path: Path) -> None:
    slots.take(TRACE + A, 1_000, document())
    before = Slots(tmp_path / "before", SERVICE)
    before.take(TRACE + A, 1_000, document())
    after = Slots(tmp_path / "after", SERVICE)
    after.beat(5_000)
    after.take_over(before)
    assert read(tmp_path / "after") == [RUN]
    after.release(0, TRACE + A)
    assert len(after) == 0
    after.close()


def test_no_file_has_no_runs(path: Path) -> None:
    assert read(path) == []
