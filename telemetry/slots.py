"""Slots: the runs that a process has open, in a mapped file beside its spool, readable after a SIGKILL.

A head (who the process is, and when it last gave a sign of life), then a slot for each open run. Everything is
written before the byte that says that a slot is taken, so a reader never sees half a run.

    head   8 bytes   last sign of life, ns since the epoch
           4         length of the JSON that follows: pid, host, service columns
           1         some run is asked to be cancelled: files beside this one name them
           …         at 2048: length of the counts of the process (4 bytes), and they, as JSON
    slot   1 byte    taken
           1         nothing
           2 + 2     lengths of the JSON and of the input behind it
           8         start, ns since the epoch
           16 + 8    trace id, span id
           …         JSON: agent, version, parent, agent above, user, session, request; then the input, as JSON
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .mapped import MappedFile

CANCEL = "cancel."  # begins the name of a file that asks for the run whose ids follow
RUNS = "runs"  # the file's name
COUNT = 2048  # a process has rarely more runs open; those beyond are not recorded, and counted
SLOT_BYTES = 2048
_HEAD_BYTES = 16384
_COUNTS = 2048
_NAME = 40  # characters of a name in the head; six and more bytes each in JSON
_PRESENT_BYTES = 64 << 10  # pages beyond come when they are needed: the lowest free slot is taken first
_HEAD = struct.Struct("<QIB")
_ASKED = 12
_SLOT = struct.Struct("<xxHHxxQ24s")
_LENGTHS = struct.Struct("<HH")  # from the third byte
_IDS = slice(16, 40)
_ROOM = SLOT_BYTES - _SLOT.size

Text = str | None


class OpenRun(NamedTuple):
    """One run that its process has open, or had when it died. Times in ns since the epoch, ids in hex."""

    trace_id: str
    span_id: str
    parent_span_id: Text
    parent_agent_span_id: Text
    agent_name: str
    agent_version: Text
    started_at: int
    caller: tuple[Text, Text, Text]  # user, session, request
    input: bytes | None  # JSON, redacted; None also where it is larger than a slot
    cancel_requested: bool
    service: tuple[Text, ...]
    pid: int
    host: str
    seen_at: int  # the process' last sign of life


class Slots:
    """The slots of this process, in the file `path`.

    Args:
        service: The service columns of its rows.

    Raises:
        OSError: The disk has no room for the file.
    """

    def __init__(self, path: Path, service: Sequence[Text]) -> None:
        self.unrecorded = 0
        self._file = MappedFile(path, _HEAD_BYTES + COUNT * SLOT_BYTES, present=_PRESENT_BYTES)
        self._free = list(range(COUNT - 1, -1, -1))
        names = (value if value is None else value[:_NAME] for value in (socket.gethostname(), *service))
        who = json.dumps([os.getpid(), *names]).encode()
        self._file.bytes[_HEAD.size : _HEAD.size + len(who)] = who
        _HEAD.pack_into(self._file.bytes, 0, 0, len(who), 0)

    def beat(self, now: int) -> None:
        """Give a sign of life, at `now` in ns."""
        struct.pack_into("<Q", self._file.bytes, 0, now)

    def note_counts(self, document: bytes) -> bool:
        """Keep what the process has counted; False where that is too long."""
        mapped, begin = self._file.bytes, _COUNTS + 4
        if begin + len(document) > _HEAD_BYTES:
            return False
        struct.pack_into("<I", mapped, _COUNTS, 0)
        mapped[begin : begin + len(document)] = document
        struct.pack_into("<I", mapped, _COUNTS, len(document))
        return True

    def take(self, ids: bytes, started_at: int, document: bytes) -> int | None:
        """Note a run that starts; its slot, or None where none is free.

        Args:
            ids: Trace id and span id.
            document: The JSON list described above.
        """
        try:
            slot = self._free.pop()
        except IndexError:
            self.unrecorded += 1
            return None
        size = len(document)
        if size > _ROOM:  # names and ids of novel length
            self._free.append(slot)
            self.unrecorded += 1
            return None
        at, mapped = _HEAD_BYTES + slot * SLOT_BYTES, self._file.bytes
        mapped[at : at + _SLOT.size + size] = _SLOT.pack(size, 0, started_at, ids) + document
        mapped[at] = 1
        return slot

    def note_input(self, slot: int, document: bytes) -> None:
        """Keep what the run was given, where it fits."""
        at, mapped = _HEAD_BYTES + slot * SLOT_BYTES, self._file.bytes
        size, length = _LENGTHS.unpack_from(mapped, at + 2)
        if size + len(document) <= _ROOM:
            begin = at + _SLOT.size + size
            if length:
                _LENGTHS.pack_into(mapped, at + 2, size, 0)
            mapped[begin : begin + len(document)] = document
            _LENGTHS.pack_into(mapped, at + 2, size, len(document))

    def release(self, slot: int, ids: bytes) -> None:
        """The run has ended. One that this process did not begin (a forked child has its parent's) is left alone."""
        at, mapped = _HEAD_BYTES + slot * SLOT_BYTES, self._file.bytes
        if mapped[at] and mapped[at + _IDS.start : at + _IDS.stop] == ids:
            mapped[at] = 0
            self._free.append(slot)

    def cancelled(self) -> list[tuple[int, int]]:
        """Trace and span ids of the runs that somebody asked to be cancelled; each is told once."""
        if not self._file.bytes[_ASKED]:
            return []
        self._file.bytes[_ASKED] = 0
        asked = []
        for path in self._file.path.parent.glob(f"{CANCEL}*"):
            _, trace_id, span_id = path.name.split(".")
            asked.append((int(trace_id, 16), int(span_id, 16)))
            path.unlink()
        return asked

    def take_over(self, other: Slots) -> None:
        """Hold what another file held, which was deleted; that one is closed."""
        self._file.bytes[_HEAD_BYTES:] = other._file.bytes[_HEAD_BYTES:]
        self._free, self.unrecorded = other._free, other.unrecorded
        other.close()

    def __len__(self) -> int:
        return COUNT - len(self._free)

    def close(self) -> None:
        """Let go of the file, and leave it."""
        self._file.close()


def read(path: Path) -> list[OpenRun]:
    """The open runs of a process, living or dead; none where there is no file, or one that is just being made.

    Raises:
        OSError: The file cannot be read.
    """
    try:
        data = path.read_bytes()
        seen_at, size, _ = _HEAD.unpack_from(data)
        pid, host, *service = json.loads(data[_HEAD.size : _HEAD.size + size])
    except (FileNotFoundError, ValueError, struct.error):
        return []  # a loss of power may leave it empty too
    asked = {path.name for path in path.parent.glob(f"{CANCEL}*")}
    runs = []
    for at in range(_HEAD_BYTES, len(data), SLOT_BYTES):
        if data[at]:
            size, length, started_at, ids = _SLOT.unpack_from(data, at)
            trace_id, span_id = ids[:16].hex(), ids[16:].hex()
            begin = at + _SLOT.size
            try:
                agent, version, parent, above, *caller = json.loads(data[begin : begin + size])
            except ValueError:  # taken anew while we read
                continue
            given = data[begin + size : begin + size + length] or None
            runs.append(
                OpenRun(
                    *(trace_id, span_id, parent, above, agent, version, started_at),
                    caller=(caller[0], caller[1], caller[2]),
                    input=given,
                    cancel_requested=f"{CANCEL}{trace_id}.{span_id}" in asked,
                    service=tuple(service),
                    pid=pid,
                    host=host,
                    seen_at=max(seen_at, started_at),
                )
            )
    return runs


def read_counts(path: Path) -> bytes:
    """What the process of this file has counted; empty where it is just writing it, or never did.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    size = int.from_bytes(head[_COUNTS : _COUNTS + 4], "little")
    return head[_COUNTS + 4 : _COUNTS + 4 + size]


def cancel(path: Path, trace_id: str, span_id: str) -> bool:
    """Ask the process of this file to cancel a run; False where it has no such run.

    The wish is a file of its own beside it, which names the run: a slot may be another's by the time it is looked at.

    Raises:
        OSError: The file cannot be read or written.
    """
    if all((run.trace_id, run.span_id) != (trace_id, span_id) for run in read(path)):
        return False
    path.with_name(f"{CANCEL}{trace_id}.{span_id}").touch(0o600)
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"\1", _ASKED)
    return True
