from __future__ import annotations

import os
import threading

import pytest

from telemetry import worker
from telemetry.worker import Worker


def test_it_works_again_after_the_pause_it_asked_for_until_it_is_stopped() -> None:
    done, third = [], threading.Event()

    def work() -> float:
        done.append(threading.current_thread().name)
        if len(done) == 3:
            third.set()
            return 3600.0
        return 0.0

    worker = Worker("worker", work, 0.0)
    worker.start()
    assert third.wait(10)
    assert worker.stop(10.0)
    assert done == ["worker"] * 3


def test_stop_tells_when_the_work_takes_longer() -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> float:
        entered.set()
        leave.wait(10)
        return 0.0

    worker = Worker("worker", work, 0.0)
    worker.start()
    assert entered.wait(10)
    assert not worker.stop(0.05)
    leave.set()
    assert worker.stop(10.0)


def test_a_forked_child_has_one_of_its_own() -> None:
    reader, writer = os.pipe()
    parent = os.getpid()

    def work() -> float:
        if os.getpid() != parent:
            os.write(writer, b"child")
        return 3600.0

    worker = Worker("worker", work, 0.0)
    worker.start()
    child = os.fork()
    if child == 0:
        threading.Event().wait(10)
        os._exit(0)
    try:
        assert os.read(reader, 5) == b"child"
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        worker.stop(10.0)
        os.close(reader)
        os.close(writer)


def test_a_stopped_one_stays_stopped_in_a_child() -> None:
    reader, writer = os.pipe()
    worker = Worker("worker", lambda: 3600.0, 3600.0)
    worker.start()
    assert worker.stop(10.0)
    child = os.fork()
    if child == 0:
        os.write(writer, bytes([sum(thread.name == "worker" for thread in threading.enumerate())]))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1) == b"\0"
    os.close(reader)
    os.close(writer)


def test_work_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(worker, "_AFTER_FAILURE", 0.0)
    done = threading.Event()
    calls: list[int] = []

    def work() -> float:
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("not yet")
        done.set()
        return 60.0

    made = Worker("a-worker", work, 0.0)
    made.start()
    assert done.wait(10)
    assert made.stop(10)
    assert [record.getMessage() for record in caplog.records] == ["a-worker failed; it tries again in 0 s"] * 2
