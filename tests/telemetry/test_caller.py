from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest

from telemetry import bind
from telemetry.caller import NOBODY, Caller, bound_caller
from tests.telemetry.observed import Observed, Row


def ids(row: Row) -> tuple[str | None, str | None, str | None]:
    return row["user_id"], row["session_id"], row["request_id"]


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        (NOBODY, Caller("u", "s", "r"), Caller("u", "s", "r")),
        (Caller("a"), Caller("u", "s", "r"), Caller("a", "s", "r")),
        (Caller("a", "b", "c"), Caller("u", "s", "r"), Caller("a", "b", "c")),
        (Caller("a"), NOBODY, Caller("a")),
        (Caller(""), Caller("u"), Caller("")),
    ],
)
def test_over(mine: Caller, theirs: Caller, expected: Caller) -> None:
    assert mine.over(theirs) == expected


def test_missing_names_what_the_attributes_lack() -> None:
    assert Caller("u", None, "r").missing({"user.id": "other"}) == {"spanledger.request.id": "r"}
    assert NOBODY.missing({}) == {}


def test_an_inner_bind_keeps_what_it_does_not_name() -> None:
    with bind(user_id="u", session_id="s") as outer:
        assert (outer, bound_caller()) == (Caller("u", "s"), Caller("u", "s"))
        with bind(session_id="t", request_id="r"):
            assert bound_caller() == Caller("u", "t", "r")
        assert bound_caller() == Caller("u", "s")
    assert bound_caller() == NOBODY


def test_bound_ids_reach_every_row_and_span(observed: Observed) -> None:
    with (
        bind(user_id="u", session_id="s", request_id="r"),
        observed.monitor.execution("outer"),
        observed.monitor.execution("inner") as run,
        run.tool("t"),
        observed.tracer.start_as_current_span("http"),
    ):
        pass
    rows = [*observed.executions, *observed.steps]
    assert [ids(row) for row in rows] == [("u", "s", "r")] * 3
    expected = {"user.id": "u", "session.id": "s", "spanledger.request.id": "r", "gen_ai.agent.name": "inner"}
    assert dict(observed.spans["http"].attributes or {}) == expected


def test_ids_of_an_execution_reach_its_children_and_foreign_spans(observed: Observed) -> None:
    with observed.monitor.execution("outer", user_id="u", session_id="s"):
        with observed.tracer.start_as_current_span("http") as span:
            span.set_attribute("own", 1)
        with observed.monitor.execution("inner", session_id="t", request_id="r"):
            pass
    assert ids(observed.execution("outer")) == ("u", "s", None)
    assert ids(observed.execution("inner")) == ("u", "t", "r")
    foreign = {"user.id": "u", "session.id": "s", "gen_ai.agent.name": "outer", "own": 1}
    assert dict(observed.spans["http"].attributes or {}) == foreign


def test_named_ids_win_over_those_above_and_those_over_bound_ones(observed: Observed) -> None:
    with bind(user_id="bound", session_id="bound", request_id="bound"):
        with observed.monitor.execution("outer", user_id="above", session_id="above"):
            with observed.monitor.execution("inner", user_id="named"):
                pass
    assert ids(observed.execution("inner")) == ("named", "above", "bound")


def test_spans_outside_of_agents_carry_bound_ids_but_no_agent(observed: Observed) -> None:
    with bind(request_id="r"), observed.tracer.start_as_current_span("GET /"):
        pass
    assert dict(observed.spans["GET /"].attributes or {}) == {"spanledger.request.id": "r"}
    assert (observed.executions, observed.steps) == ([], [])


@pytest.mark.anyio
async def test_two_requests_at_once_keep_their_own_ids(observed: Observed) -> None:
    @observed.monitor.agent("a")
    async def agent(n: int) -> None:
        await asyncio.sleep(0)

    async def request(n: int) -> None:
        with bind(user_id=f"u{n}"):
            await asyncio.sleep(0)
            await agent(n)
            await asyncio.to_thread(lambda: None)

    await asyncio.gather(*(request(n) for n in range(5)))
    assert {(row["user_id"], row["input_data"]) for row in observed.executions} == {
        (f"u{n}", f'{{"n":{n}}}') for n in range(5)
    }


@pytest.mark.anyio
async def test_a_bind_closed_in_another_task_is_silent() -> None:
    stack = ExitStack()

    async def enter() -> None:
        stack.enter_context(bind(user_id="u"))

    await asyncio.create_task(enter())
    stack.close()
    assert bound_caller() == NOBODY


def open_by_bind(observed: Observed, user_id: Any) -> None:
    with bind(user_id=user_id), observed.monitor.execution("a"):
        pass


def open_by_execution(observed: Observed, user_id: Any) -> None:
    with observed.monitor.execution("a", user_id=user_id):
        pass


def open_by_foreign_span(observed: Observed, user_id: Any) -> None:
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a", "user.id": user_id}
    with observed.tracer.start_as_current_span("a", attributes=attributes):
        pass


@pytest.mark.parametrize(
    "opened",
    [
        open_by_bind,
        open_by_execution,
        open_by_foreign_span,
    ],
)
def test_an_id_that_is_a_number_is_stored_as_text(observed: Observed, opened: Any) -> None:
    opened(observed, 42)
    assert observed.execution("a")["user_id"] == "42"
