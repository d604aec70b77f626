"""`spanledger check`: silent where rows, steps and roll-up agree, says what differs, and repairs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from sqlalchemy import make_url

from app import upkeep
from app.check import check
from app.cli import spanledger
from app.database import Database
from app.embedded import running_url
from tests.app.rows import writing
from tests.app.service import NO_DATABASE
from tests.conftest import Server
from tests.telemetry.stored import OTHER_TRACE, TRACE, Sink, execution, sink, step, usage

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = NOW.replace(minute=0, second=0)
END = HOUR - timedelta(minutes=30)
SINCE = HOUR - timedelta(days=3)
ROOT, CHILD, LEAF = (f"00000000000000a{number}" for number in (1, 2, 3))
B1, B2 = "00000000000000b1", "00000000000000b2"


@pytest.fixture
def drained(database: Database, tmp_path: Path) -> Iterator[Sink]:
    with sink(tmp_path, database.sink_connection) as made:
        yield made


@pytest.fixture
def stored(drained: Sink) -> Sink:
    """A request with an agent below it, and the step of each."""
    own, below = usage(10, "0.5"), usage(4, "0.25")
    drained.put(
        step(B1, end=END, agent_span_id=CHILD, usage=below),
        execution(CHILD, end=END, parent_agent_span_id=ROOT, own=below, total=below),
        step(B2, end=END, agent_span_id=ROOT, usage=own),
        execution(ROOT, end=END, own=own, total=own.plus(below)),
    )
    assert drained.drain()
    return drained


def run(monkeypatch: pytest.MonkeyPatch, database: Database, *options: str) -> tuple[int, str, str]:
    monkeypatch.setenv("DATABASE_URL", database.url.render_as_string(hide_password=False))
    result = CliRunner().invoke(spanledger, ["check", *options])
    return result.exit_code, result.stdout, result.stderr


def tampered(database: Database, *statements: str) -> None:
    with writing(database) as rows:
        for statement in statements:
            rows.connection.execute(statement.encode())


def test_what_agrees(database: Database, stored: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, database) == (0, "Rows, steps and the roll-up agree.\n", "")
    code, out, err = run(monkeypatch, database, "--json", "--repair")
    assert (code, json.loads(out), err) == (0, {"agrees": True, "traces": [], "hours": []}, "")


def test_traces_that_still_run_or_began_before_agree(database: Database, drained: Sink) -> None:
    own = usage(3, "1")
    drained.put(
        # The root is still open, and so is the agent of the second step.
        step(B1, end=END, agent_span_id=LEAF, usage=own),
        execution(LEAF, end=END, parent_agent_span_id=CHILD, own=own, total=own),
        step(B2, end=END, agent_span_id=CHILD, usage=own),
        # Its step was before the range.
        execution(ROOT, trace_id=OTHER_TRACE, start_time=0, end=SINCE, own=own, total=own),
    )
    assert drained.drain()
    assert not check(database, SINCE)


@pytest.mark.parametrize(
    ("statement", "sums"),
    [
        ("UPDATE agent_executions SET tokens_used = 21 WHERE span_id = '00000000000000a1'", (29, 28, 28)),
        ("UPDATE agent_executions SET tokens_total = 27 WHERE span_id = '00000000000000a1'", (28, 27, 28)),
        ("UPDATE execution_steps SET output_tokens = 5 WHERE span_id = '00000000000000b1'", (28, 28, 29)),
        ("DELETE FROM execution_steps WHERE span_id = '00000000000000b1'", (28, 28, 20)),
        ("UPDATE agent_executions SET is_root = false, cost_usd = NULL WHERE span_id ~ 'a2'", (28, 28, 28)),
    ],
)
def test_each_of_the_three_sums_is_compared(
    database: Database, stored: Sink, monkeypatch: pytest.MonkeyPatch, statement: str, sums: tuple[int, ...]
) -> None:
    tampered(database, statement)
    (trace,) = check(database, SINCE).traces
    assert (trace.trace_id, trace.own_tokens, trace.total_tokens, trace.step_tokens) == (TRACE, *sums)
    code, out, _ = run(monkeypatch, database)
    assert (code, out.splitlines()[0]) == (
        1,
        "1 traces whose sums differ: own over executions, totals of roots, steps",
    )
    assert run(monkeypatch, database, "--repair")[:2] == (0, "Rows, steps and the roll-up agree.\n")
    assert run(monkeypatch, database)[0] == 0


def test_what_differs_is_said_and_repaired(database: Database, stored: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    tampered(
        database,
        "UPDATE agent_executions SET tokens_used = 30, cost_usd = 9 WHERE span_id = '00000000000000a1'",
    )
    hour = END.replace(minute=0)
    said = (
        "1 traces whose sums differ: own over executions, totals of roots, steps\n"
        f"  {TRACE}  tokens 38 28 28  USD 9.25 0.75 0.75\n"
        "1 hours whose roll-up differs from the rows\n"
        f"  {hour:%Y-%m-%d %H}:00Z  1 keys: tokens_used 20 for 30, cost_usd 0.5 for 9\n"
    )
    assert run(monkeypatch, database) == (1, said, "")
    code, out, _ = run(monkeypatch, database, "--json")
    found = json.loads(out)
    assert (code, found["agrees"], found["traces"]) == (
        1,
        False,
        [
            {
                **{"trace_id": TRACE, "own_tokens": "38", "total_tokens": "28", "step_tokens": "28"},
                **{"own_cost_usd": "9.25", "total_cost_usd": "0.75", "step_cost_usd": "0.75"},
            }
        ],
    )
    assert [
        (one["hour"], one["keys"], one["rollup"]["cost_usd"], one["rows"]["cost_usd"]) for one in found["hours"]
    ] == [(f"{hour:%Y-%m-%dT%H}:00:00+00:00", 1, "0.5", "9")]
    assert run(monkeypatch, database, "--repair") == (0, "Rows, steps and the roll-up agree.\n", said)
    assert run(monkeypatch, database)[0] == 0
    with database.connect("spanledger_admin") as connection:
        row = connection.exec_driver_sql(
            "SELECT tokens_used, cost_usd FROM agent_executions WHERE span_id ~ 'a1'"
        ).one()
    assert row == (20, Decimal("0.5"))


def test_what_cannot_be_repaired_is_still_said(
    database: Database, drained: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents that claim to be each other's parents have no root."""
    own = usage(1, "1")
    drained.put(
        step(B1, end=END, agent_span_id=ROOT, usage=own),
        *(execution(one, end=END, parent_agent_span_id=two, own=own) for one, two in ((ROOT, CHILD), (CHILD, ROOT))),
    )
    assert drained.drain()
    code, out, _ = run(monkeypatch, database, "--repair")
    assert (code, out.splitlines()[1]) == (1, f"  {TRACE}  tokens 2 0 2  USD 1 0 1")


def test_a_repair_of_rows_an_old_release_stored(database: Database, stored: Sink) -> None:
    """A sink of the release before knows no roll-up."""
    tampered(database, "DELETE FROM execution_rollup")
    report = check(database, SINCE)
    assert [(int(one.rollup["executions"]), int(one.rows["executions"])) for one in report.hours] == [(0, 2)]


def test_upkeep_folds(database: Database, stored: Sink) -> None:
    upkeep._prepare(cast(FastAPI, SimpleNamespace(state=SimpleNamespace())), database)
    with database.connect("spanledger_admin") as connection:
        folded: list[Any] = list(connection.exec_driver_sql("SELECT DISTINCT folded FROM execution_rollup").scalars())
    assert folded == [END < HOUR]


def test_no_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", NO_DATABASE)
    result = CliRunner().invoke(spanledger, ["check"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("spanledger: cannot use Postgres at postgresql+psycopg://127.0.0.1:1/nowhere: ")
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("SPANLEDGER_DATA_DIR", str(tmp_path))
    result = CliRunner().invoke(spanledger, ["check"])
    assert (result.exit_code, result.stderr) == (
        2,
        f"spanledger: DATABASE_URL is unset and no service runs on {tmp_path}, which starts the database\n",
    )


def test_the_embedded_server_of_a_service_is_found(server: Server) -> None:
    socket_dir = Path(str(server.url.query["host"]))
    if socket_dir.parent.name != "postgres":
        pytest.skip("its socket is elsewhere: the path of the temporary directory is too long")
    assert make_url(running_url(socket_dir.parents[1]) or "").query == server.url.query
