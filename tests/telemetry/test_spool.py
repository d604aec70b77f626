"""The spool keeps every line it acknowledged, through crashes, forks, full disks and other processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from telemetry import spool as module
from telemetry.spool import EXECUTIONS, STEPS, TABLES, Segment, Spool, SpoolError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path)
    yield made
    made.close()


def lines(spool: Spool, table: str = EXECUTIONS) -> list[bytes]:
    """Every line of the sealed segments, in their order."""
    return b"".join(segment.read(table) for segment in spool.ready()).splitlines(keepends=True)


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@contextmanager
def process(directory: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    """Another process with a `spool` in this directory; it prints lines and waits, and is killed at the end."""
    head = """
    import os, resource, signal, sys, time
    from pathlib import Path
    from telemetry import spool as module
    from telemetry.spool import Spool, SpoolError
    spool = Spool(Path(sys.argv[1]))
    """
    code = textwrap.dedent(head) + textwrap.dedent(script)
    command = [sys.executable, "-c", code, str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def said(other: subprocess.Popen[str]) -> str:
    assert other.stdout is not None
    return other.stdout.readline().strip()


def end(other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_lines_are_sealed_loaded_and_forgotten(spool: Spool, tmp_path: Path) -> None:
    spool.append(EXECUTIONS, b"a\n")
    spool.append(STEPS, b"s\n")
    spool.append(EXECUTIONS, b"b\n")
    assert (spool.ready(), spool.pending_bytes(), spool.segments, spool.oldest) == ([], 6, 0, None)
    spool.seal()
    assert spool.ready() == [Segment(spool.writer, 1)]
    (segment,) = spool.ready()
    assert {table: segment.read(table) for table in TABLES} == {EXECUTIONS: b"a\nb\n", STEPS: b"s\n"}
    assert (segment.size(), spool.pending_bytes(), spool.segments, spool.oldest) == (6, 6, 1, segment.written_at())
    name = spool.writer.name
    spare = [f"{name}/000000000002.v1.{table}.open" for table in TABLES]
    assert files(tmp_path) == [f"{name}/000000000001.v1.{table}" for table in TABLES] + [*spare, f"{name}/lock"]
    segment.remove()
    assert (spool.ready(), spool.pending_bytes(), spool.segments, spool.oldest) == ([], 0, 0, None)
    assert files(tmp_path) == [*spare, f"{name}/lock"]
    segment.remove()
    assert [segment.read(table) for table in TABLES] == [b"", b""]


def test_only_the_owner_may_read_it(spool: Spool, tmp_path: Path) -> None:
    spool.append(EXECUTIONS, b"a\n")
    modes = {path.name.split(".", 1)[-1]: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {
        spool.writer.name: 0o700,
        **{"lock": 0o600, "v1.executions.open": 0o600, "v1.steps.open": 0o600},
    }


def test_nothing_to_seal(spool: Spool) -> None:
    spool.seal()
    spool.seal()
    assert spool.ready() == []


def test_segments_come_in_the_order_of_sealing(spool: Spool) -> None:
    for number in range(12):
        spool.append(EXECUTIONS, b"%d\n" % number)
        spool.seal()
    assert lines(spool) == [b"%d\n" % number for number in range(12)]


def test_two_writers_on_one_directory(spool: Spool, tmp_path: Path) -> None:
    other = Spool(tmp_path)
    for number in range(4):
        (spool, other)[number % 2].append(STEPS, b"%d\n" % number)
    spool.seal()
    assert lines(other, STEPS) == [b"0\n", b"2\n"]
    other.seal()
    assert sorted(lines(spool, STEPS)) == [b"0\n", b"1\n", b"2\n", b"3\n"]
    assert spool.torn_lines == 0
    other.close()


def test_a_fuller_segment_is_turned(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 20)
    written = [b"line %d\n" % number for number in range(10)]
    for line in written:
        spool.append(EXECUTIONS, line)
    assert (spool.pending_bytes(), spool.ready()) == (70, [])
    spool.seal()
    assert [segment.read(EXECUTIONS).count(b"\n") for segment in spool.ready()] == [2, 2, 2, 2, 2]
    assert (lines(spool), spool.pending_bytes()) == (written, 70)


def test_threads_that_append_while_another_seals(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 4000)
    done = threading.Event()

    def write(writer: int) -> None:
        for number in range(400):
            spool.append(TABLES[number % 2], b"%d\t%d\t%s\n" % (writer, number, b"x" * (number % 50)))

    def seal() -> None:
        while not done.is_set():
            spool.seal()

    sealer = threading.Thread(target=seal)
    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in (sealer, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    sealer.join()
    spool.seal()
    expected = {(writer, number, number % 50) for writer in range(8) for number in range(400)}
    found: Counter[tuple[int, int, int]] = Counter()
    for table in TABLES:
        for line in lines(spool, table):
            writer, number, filling = line.split(b"\t")
            found[int(writer), int(number), len(filling) - 1] += 1
            assert TABLES[int(number) % 2] == table
    assert found == Counter(expected)


def test_a_line_larger_than_a_segment_gets_one_of_its_own(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 10)
    written = [b"a\n", b"b" * 50 + b"\n", b"c\n"]
    for line in written:
        spool.append(EXECUTIONS, line)
    spool.seal()
    assert lines(spool) == written


def test_a_spare_is_ready_and_goes_when_it_was_not_needed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    woken: list[bool] = []
    spool.wake = lambda: woken.append(True)
    spool.prepare(("tutor",))
    assert [path.suffix for path in spool.writer.glob("*.v1.*")] == [".open", ".open"]
    assert {path.stat().st_size for path in spool.writer.glob("*.v1.*")} == {module.SEGMENT_BYTES}
    spool.append(EXECUTIONS, b"a\n")  # takes it
    assert woken == [True]
    spool.seal()
    assert len(list(spool.writer.glob("*.open"))) == 2
    spool.close()
    assert sorted(path.name for path in spool.writer.glob("*.v1.*")) == [
        "000000000001.v1.executions",
        "000000000001.v1.steps",
    ]


# Other processes


def test_no_acknowledged_line_is_lost_by_sigkill(spool: Spool, tmp_path: Path) -> None:
    script = """
    for number in range(10_000_000):
        spool.append("executions", b"%d\\n" % number)
        spool.append("steps", b"%d\\n" % number)
        if number % 1000 == 0:
            print(number, flush=True)
    """
    with process(tmp_path, script) as other:
        while (acknowledged := int(said(other))) < 5000:
            pass
        end(other)
    kept = {table: lines(spool, table) for table in TABLES}
    assert all(kept[table] == [b"%d\n" % number for number in range(len(kept[table]))] for table in TABLES)
    assert min(map(len, kept.values())) > acknowledged
    assert spool.torn_lines == 0
    for segment in spool.ready():
        segment.remove()
    assert spool.ready() == []
    assert list(tmp_path.iterdir()) == [spool.writer]


def test_a_torn_line_is_cut_and_counted(spool: Spool, tmp_path: Path) -> None:
    script = """
    spool.append("executions", b"whole\\n")
    files = {table: file.bytes for table, file in spool._open._files.items()}
    files["executions"][6:200_006] = b"x" * 200_000  # killed before its newline
    files["steps"][10:15] = b"torn\\n"  # its end was copied first
    print(spool.writer.name, flush=True)
    time.sleep(60)
    """
    with process(tmp_path, script) as other:
        writer = said(other)
        end(other)
    (segment,) = spool.ready()
    assert segment == Segment(tmp_path / writer, 1)
    assert {table: segment.read(table) for table in TABLES} == {EXECUTIONS: b"whole\n", STEPS: b""}
    assert spool.torn_lines == 2


@pytest.mark.parametrize("left", [("executions",), ("executions", "steps")])
def test_a_crash_between_the_two_renames(spool: Spool, tmp_path: Path, left: tuple[str, ...]) -> None:
    dead = tmp_path / "1-dead"
    dead.mkdir()
    for table in TABLES:
        ending = ".open" if table in left else ""
        (dead / f"000000000007.v1.{table}{ending}").write_bytes(table.encode() + b"\n")
    assert [segment.number for segment in spool.ready()] == [7]
    assert (lines(spool), lines(spool, STEPS)) == ([b"executions\n"], [b"steps\n"])


def test_a_living_writer_is_not_adopted(spool: Spool, tmp_path: Path) -> None:
    script = """
    spool.append("executions", b"mine\\n")
    print("written", flush=True)
    sys.stdin.readline()
    spool.append("executions", b"too\\n")
    print("written", flush=True)
    time.sleep(60)
    """
    with process(tmp_path, script) as other:
        assert said(other) == "written"
        assert spool.ready() == []
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        assert said(other) == "written"
        assert spool.ready() == []
        end(other)
    assert lines(spool) == [b"mine\n", b"too\n"]


def test_a_forked_child_writes_for_itself_and_does_not_keep_its_parent_alive(spool: Spool, tmp_path: Path) -> None:
    script = """
    spool.append("executions", b"parent\\n")
    parent = spool.writer.name
    if os.fork() == 0:
        spool.append("executions", b"child\\n")
        print("child", os.getpid(), parent, spool.writer.name, flush=True)
        time.sleep(60)
    time.sleep(60)
    """
    with process(tmp_path, script) as other:
        _, child, parent_writer, child_writer = said(other).split()
        assert spool.ready() == []
        end(other)
        try:
            assert lines(spool) == [b"parent\n"]
            assert [segment.directory.name for segment in spool.ready()] == [parent_writer]
        finally:
            os.kill(int(child), signal.SIGKILL)
        # The child is not ours to wait for: the kernel lets go of its lock when it is gone.
        eventually(lambda: len(spool.ready()) == 2)
    assert sorted(lines(spool)) == [b"child\n", b"parent\n"]
    assert {segment.directory.name for segment in spool.ready()} == {parent_writer, child_writer}


def test_a_child_that_cannot_begin_refuses_rows_and_writes_to_no_descriptor_of_others(tmp_path: Path) -> None:
    script = """
    from telemetry import home
    spool.append("executions", b"parent\\n")
    numbers = [*spool._home.locks, *(file.fd for file in spool._open._files.values())]
    home.secrets.token_hex = lambda _: "\\0"  # no such directory can be made
    sys.unraisablehook = lambda _: None
    if os.fork() == 0:
        taken = {os.open(os.devnull, os.O_RDWR) for _ in range(10)}
        try:
            spool.append("executions", b"child\\n")
        except SpoolError as error:
            print(set(numbers) <= taken, error.reason, flush=True)
        os._exit(0)
    os.wait()
    """
    with process(tmp_path, script) as other:
        assert said(other) == "True spool_closed"


def test_directories_of_dead_writers_vanish(spool: Spool, tmp_path: Path) -> None:
    Spool(tmp_path).close()
    (tmp_path / "1-nolock").mkdir()
    old, new = tmp_path / ".2-old", tmp_path / ".3-new"
    for hidden in (old, new):
        hidden.mkdir()
    os.utime(old, (0, 0))
    spool.ready()
    assert sorted(tmp_path.iterdir()) == sorted([spool.writer, new])
    os.utime(new, (0, 0))
    spool.ready()
    assert list(tmp_path.iterdir()) == [spool.writer]


def test_a_directory_that_resists_does_not_hold_up_the_rest(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "0-odd" / "lock").mkdir(parents=True)
    dead = Spool(tmp_path)
    dead.append(STEPS, b"a\n")
    dead.close()
    spool.append(STEPS, b"b\n")
    spool.seal()
    assert sorted(lines(spool, STEPS)) == [b"a\n", b"b\n"]
    assert (tmp_path / "0-odd").is_dir()


def test_a_writer_that_shows_itself_during_adoption(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = spool.directory / ".1-new"
    hidden.mkdir()
    is_dir = Path.is_dir

    def renamed_after(path: Path) -> bool:
        found = is_dir(path)
        if path == hidden:
            path.rename(path.with_name("1-new"))
        return found

    monkeypatch.setattr(Path, "is_dir", renamed_after)
    assert spool.ready() == []


# Limits


def refused(spool: Spool, line: bytes = b"more\n", table: str = EXECUTIONS) -> str:
    with pytest.raises(SpoolError) as error:
        spool.append(table, line)
    return error.value.reason


def test_a_full_spool_refuses_the_newest_until_it_is_drained(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=10)
    spool.append(EXECUTIONS, b"first\n")
    assert refused(spool) == "spool_full"
    spool.append(STEPS, b"two\n")
    assert refused(spool, b"\n") == "spool_full"
    spool.seal()
    assert refused(spool, b"\n") == "spool_full"
    assert (lines(spool), lines(spool, STEPS)) == ([b"first\n"], [b"two\n"])
    for segment in spool.ready():
        segment.remove()
    spool.look()
    spool.append(EXECUTIONS, b"again\n")
    spool.seal()
    assert lines(spool) == [b"again\n"]
    spool.close()


def test_turned_segments_count_as_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 4)
    spool = Spool(tmp_path, max_bytes=10)
    spool.append(EXECUTIONS, b"first\n")
    spool.look()
    assert (spool.pending_bytes(), refused(spool)) == (6, "spool_full")
    spool.close()


def test_what_is_there_at_start_counts(tmp_path: Path) -> None:
    before = Spool(tmp_path)
    before.append(EXECUTIONS, b"first\n")
    before.close()
    spool = Spool(tmp_path, max_bytes=10)
    assert (spool.pending_bytes(), spool.segments, refused(spool)) == (6, 1, "spool_full")
    spool.close()


def test_a_full_spool_notices_that_another_process_drained_it(tmp_path: Path) -> None:
    spool, drainer = Spool(tmp_path, max_bytes=10), Spool(tmp_path)
    spool.append(EXECUTIONS, b"0123456\n")
    spool.seal()
    assert refused(spool) == "spool_full"
    for segment in drainer.ready():
        segment.remove()
    assert refused(spool) == "spool_full"  # callers do not look at the disk
    spool._look_pause = 0.0
    spool.seal()
    spool.append(EXECUTIONS, b"again\n")
    assert spool.pending_bytes() == 6
    for each in (spool, drainer):
        each.close()


def test_a_disk_that_has_no_room_for_a_segment(tmp_path: Path) -> None:
    script = """
    module.SEGMENT_BYTES = 1 << 16
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        spool.append("executions", b"refused\\n")
    except SpoolError as error:
        print(f"{error.reason}: {error}".replace(str(spool.writer), "W"), flush=True)
    print(os.listdir(spool.writer), flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    spool.append("executions", b"after\\n")
    print("written", flush=True)
    time.sleep(60)
    """
    with process(tmp_path, script) as other:
        assert said(other) == "disk_error: W: File too large"
        assert said(other) == "['lock']"
        assert said(other) == "written"
        end(other)
    spool = Spool(tmp_path)
    assert lines(spool) == [b"after\n"]
    assert spool.torn_lines == 0
    spool.close()


def test_a_directory_deleted_while_running_is_made_again(spool: Spool, tmp_path: Path) -> None:
    spool.append(EXECUTIONS, b"first\n")
    spool.append(STEPS, b"step\n")
    old = spool.writer
    for deleted in (old, tmp_path):
        shutil.rmtree(deleted)
        spool.append(EXECUTIONS, b"in what is deleted\n")
        spool.seal()
        spool.append(EXECUTIONS, b"after\n")
        spool.seal()
    assert spool.writer != old
    assert lines(spool, STEPS) == []  # what was sealed before the second deletion is gone
    assert lines(spool) == [b"in what is deleted\n", b"after\n"]
    other = Spool(tmp_path)
    assert other.ready() == spool.ready()  # nobody takes a living process' directory
    other.close()


def test_a_segment_deleted_while_it_was_written_is_kept(spool: Spool) -> None:
    spool.append(EXECUTIONS, b"a\n")
    spool.append(STEPS, b"b\n")
    (spool.writer / "000000000001.v1.executions.open").unlink()
    spool.seal()
    assert (lines(spool), lines(spool, STEPS)) == ([b"a\n"], [b"b\n"])
    assert [segment.number for segment in spool.ready()] == [3]  # 2 is the spare


def test_half_a_segment_is_never_left(spool: Spool) -> None:
    squatter = spool.writer / "000000000001.v1.steps.open"
    squatter.write_bytes(b"")
    descriptors = len(os.listdir("/dev/fd"))
    assert refused(spool) == "disk_error"
    assert len(os.listdir("/dev/fd")) == descriptors
    spool.append(EXECUTIONS, b"a\n")
    spool.append(STEPS, b"b\n")
    squatter.unlink()
    spool.seal()
    assert spool.ready() == [Segment(spool.writer, 2)]
    assert (lines(spool), lines(spool, STEPS)) == ([b"a\n"], [b"b\n"])


def test_a_disk_that_will_not_commit_hands_on_every_segment(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(module, "_datasync", refuse)
    descriptors = len(os.listdir("/dev/fd"))
    for line in (b"first\n", b"second\n", b"third\n"):
        spool.append(EXECUTIONS, line)
    with pytest.raises(OSError, match="Input/output error"):
        spool.seal()
    assert lines(spool) == [b"first\n", b"second\n", b"third\n"]
    spool.close()
    assert len(os.listdir("/dev/fd")) == descriptors - 2  # the locks'


def test_a_disk_that_stalls_is_not_waited_for(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers use what room there is, the spare too, then memory; then they are refused. At no time do they wait."""
    entered, leave = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        entered.set()
        assert leave.wait(20)

    monkeypatch.setattr(module, "SEGMENT_BYTES", 20)
    monkeypatch.setattr(module, "QUEUE_BYTES", 20)
    spool.append(EXECUTIONS, b"first...\n")
    spool.seal()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_datasync", hang)
        spool.append(EXECUTIONS, b"second..\n")
        sealer = threading.Thread(target=spool.seal)
        sealer.start()
        assert entered.wait(10)
        time.sleep(module._STALLED_SECONDS * 2)
        began = time.monotonic()
        spool.append(EXECUTIONS, b"third...\n")  # fills the spare
        spool.append(EXECUTIONS, b"fourth..\n")
        assert spool.queued_lines == 0
        spool.append(EXECUTIONS, b"fifth...\n")  # no other spare: the sealer hangs
        spool.append(EXECUTIONS, b"sixth...\n")
        assert spool.queued_lines == 2
        assert refused(spool) == "disk_stalled"
        assert time.monotonic() - began < 5
        assert spool.pending_bytes() == 54
        leave.set()
        sealer.join()
    spool.append(EXECUTIONS, b"seventh.\n")
    spool.seal()
    words = (b"first...", b"second..", b"third...", b"fourth..", b"fifth...", b"sixth...", b"seventh.")
    assert sorted(lines(spool)) == sorted(word + b"\n" for word in words)
    assert spool.pending_bytes() == 63


def test_a_caller_waits_for_others_who_do_not_wait_for_the_disk(spool: Spool) -> None:
    """However long: a line that is left in memory is lost with the process."""
    waiting = threading.Thread(target=spool.append, args=(EXECUTIONS, b"a\n"))
    with spool._lock:
        waiting.start()
        waiting.join(module._PATIENCE_SECONDS * 10)
        assert (waiting.is_alive(), spool.queued_lines) == (True, 0)
    waiting.join(10)
    assert (spool.queued_lines, spool._open is not None and spool._open.lines()[EXECUTIONS]) == (0, b"a\n")


def test_a_caller_does_not_wait_for_another_who_waits_for_the_disk(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()
    make = spool._make

    def hang(capacity: int = 0) -> Any:
        entered.set()
        assert leave.wait(20)
        return make(capacity)

    monkeypatch.setattr(spool, "_make", hang)
    unlucky = threading.Thread(target=spool.append, args=(EXECUTIONS, b"unlucky\n"))
    unlucky.start()
    assert entered.wait(10)
    for _ in range(100):
        spool.append(EXECUTIONS, b"other\n")
    assert unlucky.is_alive()
    leave.set()
    unlucky.join()
    spool.seal()
    assert sorted(lines(spool)) == [b"other\n"] * 100 + [b"unlucky\n"]
    assert spool.queued_lines == 100


def test_what_waits_in_memory_is_written_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    monkeypatch.setattr(spool, "_is_stalled", lambda: True)
    spool.append(EXECUTIONS, b"a\n")
    assert (spool.queued_lines, list(spool.writer.glob("*.v1.*"))) == (1, [])
    spool.close()
    other = Spool(tmp_path)
    assert lines(other) == [b"a\n"]
    other.close()


def test_without_commit_a_segment_is_sealed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed: list[int] = []
    monkeypatch.setattr(module, "_datasync", committed.append)
    for sync in (False, True):
        spool = Spool(tmp_path, sync=sync)
        spool.append(EXECUTIONS, b"a\n")
        spool.seal()
        assert (len(lines(spool)), len(committed)) == ((2, 1) if sync else (1, 0))
        spool.close()


def test_a_closed_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(EXECUTIONS, b"a\n")
    spool.close()
    spool.close()
    assert refused(spool) == "spool_closed"
    other = Spool(tmp_path)
    assert lines(other) == [b"a\n"]
    assert spool.writer.is_dir()  # until its rows are stored
    for segment in other.ready():
        segment.remove()
    other.ready()
    assert not spool.writer.exists()
    other.close()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        Spool(tmp_path / "file" / "spool")


def test_who_seals_second_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "spool")
    entered, leave = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        entered.set()
        leave.wait(10)

    monkeypatch.setattr("telemetry.spool._datasync", slow)
    spool.append(EXECUTIONS, b"line\n")
    first = threading.Thread(target=spool.seal)
    first.start()
    assert entered.wait(10)
    spool.look()
    assert spool.pending_bytes() == 5  # neither open nor sealed, and waiting all the same
    threading.Timer(0.2, leave.set).start()
    spool.seal()
    assert [segment.read(EXECUTIONS) for segment in spool.ready()] == [b"line\n"]
    first.join()
    spool.close()


def test_a_table_without_lines_is_not_committed_and_reads_as_empty_uncut(spool: Spool) -> None:
    spool.append(EXECUTIONS, b"a\n")
    spool.seal()
    (segment,) = spool.ready()
    segment.path(STEPS).write_bytes(bytes(4096))  # as a loss of power may leave it
    assert (segment.read(STEPS), segment.lines()) == (b"", 1)


def test_a_segment_that_cannot_be_renamed_is_sealed_the_next_time(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    for number in range(3):
        spool.append(EXECUTIONS, b"%d\n" % number)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", refuse)
            with pytest.raises(OSError, match="No space left"):
                spool.seal()
    assert (lines(spool), spool.pending_bytes()) == ([], 6)
    spool.seal()
    assert (lines(spool), spool.pending_bytes()) == ([b"0\n", b"1\n", b"2\n"], 6)


def test_a_home_whose_lock_file_was_deleted_is_still_lived_in(spool: Spool, tmp_path: Path) -> None:
    other = Spool(tmp_path)
    other.append(EXECUTIONS, b"mine\n")
    (other.writer / "lock").unlink()
    assert spool.ready() == []
    other.append(EXECUTIONS, b"too\n")
    other.close()
    assert lines(spool) == [b"mine\n", b"too\n"]


def test_an_append_within_an_append_waits_in_memory(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a collection can do it, which closes an abandoned generator."""
    make = spool._make

    def collecting(capacity: int = 0) -> Any:
        monkeypatch.setattr(spool, "_make", make)
        spool.append(EXECUTIONS, b"inner\n")
        return make(capacity)

    monkeypatch.setattr(spool, "_make", collecting)
    spool.append(EXECUTIONS, b"outer\n")
    assert spool.queued_lines == 1
    spool.seal()
    assert sorted(lines(spool)) == [b"inner\n", b"outer\n"]


def test_notes_and_drafts_that_mean_nothing_are_removed(spool: Spool, tmp_path: Path) -> None:
    dead = tmp_path / "1-dead"
    dead.mkdir()
    for name in ("000000000001.v1.seen", "cancel.ab.cd", "999999999999.v1.executions.open"):
        (dead / name).write_bytes(b"")
    assert spool.ready() == []
    assert list(tmp_path.iterdir()) == [spool.writer]
