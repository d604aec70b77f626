"""Runs that are open when their process is killed become rows `crashed`, once, and keep the sums true."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.database import Database
from telemetry.spool import EXECUTIONS, STEPS
from tests.conftest import ROOT
from tests.telemetry.conftest import Observe
from tests.telemetry.stored import rows

HEAD = """
    import asyncio, os, signal, sys, time
    from pathlib import Path
    from opentelemetry.sdk.resources import Resource
    from telemetry import AgentMonitor, bind, configure, current_run
    configured = configure(spool_dir=Path(sys.argv[1]), resource=Resource({"service.name": "tutor"}))
    monitor = AgentMonitor()
"""
NESTED = """
    with bind(user_id="u1", request_id="r1"), monitor.execution("outer", version="2", input={"topic": "owls"}) as outer:
        with outer.inference(provider="p", model="m") as call:
            call.usage(input_tokens=100, output_tokens=10)
        with monitor.execution("ended") as ended:
            ended.record_usage(provider="p", model="m", input_tokens=20, output_tokens=2)
        with monitor.execution("inner") as inner:
            inner.record_usage(provider="p", model="m", input_tokens=3, output_tokens=1)
            print("open", flush=True)
            time.sleep(60)
"""


@contextmanager
def process(directory: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    """A process that spools in this directory; killed at the end."""
    code = textwrap.dedent(HEAD) + textwrap.dedent(script)
    command = [sys.executable, "-c", code, str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def killed(directory: Path, script: str) -> int:
    """Run the script until it says `open`, then kill it; its pid."""
    with process(directory, script) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "open\n"
        started.send_signal(signal.SIGKILL)
        assert started.wait(20) == -signal.SIGKILL
        return started.pid


def by_agent(database: Database) -> dict[str, dict[str, Any]]:
    found = rows(database, EXECUTIONS)
    assert len({row["agent_name"] for row in found}) == len(found)
    return {row["agent_name"]: row for row in found}


def test_open_runs_become_rows_and_the_sums_hold(observe: Observe, database: Database, tmp_path: Path) -> None:
    before = time.time()
    pid = killed(tmp_path / "spool", NESTED)
    observed = observe(connect=database.sink_connection, drain_interval=3600.0)
    assert observed.telemetry.flush()
    found = by_agent(database)
    outcomes = {agent: (row["status"], row["error_type"], row["is_root"]) for agent, row in found.items()}
    assert outcomes == {
        "outer": ("crashed", "process_died", True),
        "ended": ("success", None, False),
        "inner": ("crashed", "process_died", False),
    }
    outer, inner = found["outer"], found["inner"]
    assert (outer["user_id"], outer["session_id"], outer["request_id"]) == ("u1", None, "r1")
    assert (outer["agent_version"], outer["service_name"]) == ("2", "tutor")
    assert (outer["input_data"], outer["output_data"]) == ('{"topic":"owls"}', None)
    assert inner["parent_agent_span_id"] == inner["parent_span_id"] == outer["span_id"]
    assert outer["error_message"].startswith(f"process {pid} on ")
    assert before - 1 <= outer["started_at"].timestamp() <= outer["created_at"].timestamp() <= time.time()
    tokens = {agent: (row["tokens_used"], row["tokens_total"]) for agent, row in found.items()}
    assert tokens == {"outer": (110, 136), "ended": (22, 22), "inner": (4, 4)}
    steps = rows(database, STEPS)
    assert sum(row["input_tokens"] + row["output_tokens"] for row in steps) == 136


def test_they_are_counted_by_whoever_adopts_them(observe: Observe, tmp_path: Path) -> None:
    killed(tmp_path / "spool", NESTED)
    observed = observe()
    observed.telemetry.spool.ready()
    labels = {"service_name": "tutor", "deployment_environment_name": ""}
    value = observed.registry.get_sample_value
    for agent, requests in (("outer", 1), ("inner", 0)):
        crashed = labels | {"gen_ai_agent_name": agent, "status": "crashed"}
        assert value("spanledger_executions_total", crashed) == 1
        assert value("spanledger_requests_total", crashed) == requests
    # What had ended was counted where it ended.
    assert value("spanledger_executions_total", labels | {"gen_ai_agent_name": "ended", "status": "success"}) is None


def test_it_happens_once(observe: Observe, database: Database, tmp_path: Path) -> None:
    killed(tmp_path / "spool", NESTED)
    observed = observe(connect=database.sink_connection, drain_interval=3600.0)
    for _ in range(3):
        assert observed.telemetry.flush()
    assert len(rows(database, EXECUTIONS)) == 3
    homes = [path for path in (tmp_path / "spool").iterdir() if path.is_dir()]
    assert homes == [observed.telemetry.spool.writer]


def test_a_run_killed_just_after_its_row_was_written_has_ended(
    observe: Observe, database: Database, tmp_path: Path
) -> None:
    script = """
    def kill(*_):
        print("open", flush=True)
        time.sleep(60)
    configured.spool.runs.release = kill
    with monitor.execution("ended"):
        pass
    """
    killed(tmp_path / "spool", script)
    observed = observe(connect=database.sink_connection, drain_interval=3600.0)
    assert observed.telemetry.flush()
    assert by_agent(database)["ended"]["status"] == "success"


def test_its_row_may_be_in_a_segment_that_is_not_the_last(observe: Observe, database: Database, tmp_path: Path) -> None:
    script = """
    spool = configured.spool
    spool.seal = lambda: None
    for number in range(5):
        with monitor.execution(f"before {number}"):
            pass
        spool._turn()
    spool._open = spool._full.pop(0)
    def kill(*_):
        print("open", flush=True)
        time.sleep(60)
    spool.runs.release = kill
    with monitor.execution("ended"):
        pass
    """
    killed(tmp_path / "spool", script)
    observed = observe(connect=database.sink_connection, drain_interval=3600.0)
    assert observed.telemetry.flush()
    agents = [*(f"before {number}" for number in range(5)), "ended"]
    assert {agent: row["status"] for agent, row in by_agent(database).items()} == dict.fromkeys(agents, "success")


def test_a_run_of_an_instrumented_library_is_recorded_too(observe: Observe, database: Database, tmp_path: Path) -> None:
    script = """
    tracer = configured.tracer_provider.get_tracer("foreign")
    span = tracer.start_span("x", attributes={"gen_ai.operation.name": "chat"})
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "foreign", "user.id": "u2"}
    other = tracer.start_span("y", attributes=agent)
    print("open", flush=True)
    time.sleep(60)
    """
    killed(tmp_path / "spool", script)
    observed = observe(connect=database.sink_connection, drain_interval=3600.0)
    assert observed.telemetry.flush()
    found = {agent: (row["status"], row["user_id"]) for agent, row in by_agent(database).items()}
    assert found == {"_unattributed": ("crashed", None), "foreign": ("crashed", "u2")}


def test_runs_that_a_shutdown_cuts_off_are_recorded(observe: Observe, database: Database, tmp_path: Path) -> None:
    script = """
    run = monitor.execution("cut off")
    run.open()
    configured.shutdown()
    print("open", flush=True)
    time.sleep(60)
    """
    killed(tmp_path / "spool", script)
    observed = observe(connect=database.sink_connection, drain_interval=3600.0)
    assert observed.telemetry.flush()
    assert by_agent(database)["cut off"]["status"] == "crashed"


def test_a_run_that_ended_leaves_nothing(observe: Observe, tmp_path: Path) -> None:
    script = """
    with monitor.execution("fine"):
        pass
    configured.shutdown()
    print("open", flush=True)
    """
    with process(tmp_path / "spool", script) as started:
        assert started.wait(20) == 0
    observed = observe()
    assert [row["status"] for row in observed.executions] == ["success"]
    assert [path.parent for path in (tmp_path / "spool").glob("*/runs")] == [observed.telemetry.spool.writer]


def test_a_forked_child_does_not_touch_its_parents_runs(observe: Observe, database: Database, tmp_path: Path) -> None:
    script = """
    with monitor.execution("parent"):
        if os.fork() == 0:
            with monitor.execution("child"):
                os._exit(0)  # cut off
        os.wait()
    print("open", flush=True)
    time.sleep(60)
    """
    killed(tmp_path / "spool", script)
    observed = observe(connect=database.sink_connection, drain_interval=3600.0)
    assert observed.telemetry.flush()
    assert {agent: row["status"] for agent, row in by_agent(database).items()} == {
        "parent": "success",
        "child": "crashed",
    }


@pytest.mark.parametrize("kind", ["task", "thread"])
def test_a_run_is_cancelled_from_outside(observe: Observe, tmp_path: Path, kind: str) -> None:
    """A task is cancelled, other code sees that it is asked to end."""
    from telemetry.slots import cancel, read

    script = {
        "task": """
    async def main():
        with monitor.execution("long") as run:
            print("open", flush=True)
            await asyncio.sleep(60)
    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        print("cancelled", flush=True)
    """,
        "thread": """
    with monitor.execution("long"):
        print("open", flush=True)
        while not current_run().cancel_requested:
            time.sleep(0.01)
    print("cancelled", flush=True)
    """,
    }[kind]
    with process(tmp_path / "spool", script) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "open\n"
        (path,) = (tmp_path / "spool").glob("*/runs")
        (run,) = read(path)
        assert cancel(path, run.trace_id, run.span_id)
        assert started.stdout.readline() == "cancelled\n"
        started.wait(20)
    observed = observe()
    status = "cancelled" if kind == "task" else "success"
    assert [row["status"] for row in observed.executions] == [status]


def test_a_run_that_was_evicted_and_ended_is_not_recorded_again(observe: Observe, database: Database) -> None:
    observed = observe(connect=database.sink_connection, drain_interval=3600.0)
    from telemetry.monitor import _runtime

    assert _runtime is not None
    _runtime.spans.limit = _runtime.spans.remembered = 2
    runs = [observed.monitor.execution(f"a{number}") for number in range(6)]
    for run in runs:
        run.open()
    for run in runs:
        run.close()
    assert observed.telemetry.flush()
    assert [row["status"] for row in by_agent(database).values()] == ["success"] * 6
    slots = observed.telemetry.spool.runs
    assert slots is not None
    assert len(slots) == 0
    door = observed.telemetry.ledger().door
    assert (door.in_flight, door.unexplained()) == (0, 0)


def test_an_agent_name_that_utf8_cannot_say_holds_nothing_up(observe: Observe, tmp_path: Path) -> None:
    observed = observe(drain_interval=0.05)
    with observed.monitor.execution("lone \ud800"):
        time.sleep(0.3)
        slots = observed.telemetry.spool.runs
        assert slots is not None
        assert len(slots) == 1
    with observed.monitor.execution("after"):
        pass
    time.sleep(0.3)  # sealed by the thread, which is still there
    waiting = b"".join(segment.read(EXECUTIONS) for segment in observed.telemetry.spool.ready())
    assert waiting.count(b"\n") == 2
    assert observed.errors() == {}
