from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest

from telemetry import current_run
from telemetry.monitor import AgentMonitor
from tests.telemetry.observed import Observed

pytestmark = pytest.mark.usefixtures("quiet")

NO_SPAN = "0" * 16


class Odd(Exception):
    """An exception of the agent's own."""


def payload(observed: Observed, agent: str, column: str = "input_data") -> Any:
    return json.loads(observed.execution(agent)[column] or "null")


def name_of_run() -> str | None:
    """Which agent the code runs in, as the monitor knows it."""
    run = current_run()
    return None if run.span_id == NO_SPAN else run.span_id


# Functions


def test_a_function_keeps_its_result_name_and_signature(observed: Observed) -> None:
    @observed.monitor.agent("plain", version="2")
    def plain(text: str, *, count: int = 1) -> list[str]:
        """Documented."""
        assert current_run().span_id != NO_SPAN
        return [text] * count

    assert plain("a", count=2) == ["a", "a"]
    assert (plain.__name__, plain.__doc__, name_of_run()) == ("plain", "Documented.", None)
    row = observed.execution("plain")
    assert (row["status"], row["agent_version"], row["is_root"]) == ("success", "2", "t")
    assert (row["input_data"], row["output_data"]) == ('{"text":"a","count":2}', '["a","a"]')


@pytest.mark.anyio
async def test_a_coroutine_is_awaited_inside_its_run(observed: Observed) -> None:
    @observed.monitor.agent("coroutine")
    async def coroutine(text: str) -> str:
        await asyncio.sleep(0)
        assert current_run().span_id != NO_SPAN
        return text.upper()

    assert asyncio.iscoroutinefunction(coroutine)
    assert await coroutine("a") == "A"
    assert name_of_run() is None
    assert payload(observed, "coroutine", "output_data") == "A"


def test_none_is_no_output(observed: Observed) -> None:
    @observed.monitor.agent("silent")
    def silent() -> None:
        return None

    silent()
    assert observed.execution("silent")["output_data"] is None


def test_an_output_the_function_sets_itself_stays(observed: Observed) -> None:
    @observed.monitor.agent("setter")
    def setter() -> str:
        run = current_run()
        assert run is not None
        run.output = {"cards": 1}
        return "something else"

    setter()
    assert payload(observed, "setter", "output_data") == {"cards": 1}


def everything(a: Any, /, b: Any = 2, *rest: Any, c: Any = 3, **more: Any) -> None: ...


def just_rest(*items: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "expected"),
    [
        (everything, (1,), {}, {"a": 1}),
        (everything, (1, 5, 6, 7), {"c": 8, "d": 9}, {"a": 1, "b": 5, "rest": [6, 7], "c": 8, "d": 9}),
        (everything, (1, 5, 6), {}, {"a": 1, "b": 5, "rest": [6]}),
        (just_rest, (), {}, {}),
        (just_rest, (1, 2), {}, {"items": [1, 2]}),
        (functools.partial(everything, 0, c=4), (1,), {"d": 2}, {"b": 1, "d": 2}),
    ],
)
def test_the_input_names_the_arguments(
    observed: Observed, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any
) -> None:
    observed.monitor.agent("arguments")(function)(*args, **kwargs)
    assert payload(observed, "arguments") == expected


@pytest.mark.anyio
async def test_methods_of_every_kind_leave_themselves_out_of_the_input(observed: Observed) -> None:
    agent = AgentMonitor().agent

    class Tutor:
        @agent("method")
        def method(self, x: int) -> int:
            return x

        @classmethod
        @agent("inner_class")
        def inner_class(cls, x: int) -> str:
            return f"{cls.__name__} {x}"

        @agent("outer_class")
        @classmethod
        def outer_class(cls, x: int) -> str:
            return f"{cls.__name__} {x}"

        @staticmethod
        @agent("inner_static")
        async def inner_static(x: int) -> int:
            return x

        @agent("outer_static")
        @staticmethod
        async def outer_static(x: int) -> int:
            return x

        @agent("call")
        async def __call__(self, x: int) -> int:
            return x

    assert Tutor().method(1) == 1
    assert (Tutor.inner_class(2), Tutor().outer_class(3)) == ("Tutor 2", "Tutor 3")
    assert (await Tutor.inner_static(4), await Tutor().outer_static(5), await Tutor()(6)) == (4, 5, 6)
    inputs = {row["agent_name"]: row["input_data"] for row in observed.executions}
    assert inputs == {
        "method": '{"x":1}',
        "inner_class": '{"x":2}',
        "outer_class": '{"x":3}',
        "inner_static": '{"x":4}',
        "outer_static": '{"x":5}',
        "call": '{"x":6}',
    }
    assert set(observed.statuses().values()) == {"success"}


@pytest.mark.anyio
async def test_partials_and_callable_objects_are_awaited_inside_their_run(observed: Observed) -> None:
    async def add(a: int, b: int) -> int:
        assert current_run().span_id != NO_SPAN
        return a + b

    class Adder:
        async def __call__(self, a: int, b: int) -> int:
            return await add(a, b)

    assert await observed.monitor.agent("partial")(functools.partial(add, 1))(b=2) == 3
    assert await observed.monitor.agent("object")(Adder())(1, b=2) == 3
    assert (payload(observed, "object"), payload(observed, "object", "output_data")) == ({"a": 1, "b": 2}, 3)


# Exceptions


def test_an_exception_passes_through_as_the_same_object(observed: Observed) -> None:
    error = Odd("no luck")

    @observed.monitor.agent("failing")
    def failing() -> None:
        raise error

    with pytest.raises(Odd) as caught:
        failing()
    assert caught.value is error
    assert error.args == ("no luck",)
    row = observed.execution("failing")
    assert (row["status"], row["error_type"], row["error_message"]) == ("failure", "Odd", "no luck")


@pytest.mark.anyio
async def test_an_exception_of_a_stream_passes_through_as_the_same_object(observed: Observed) -> None:
    error = Odd("in the middle")

    @observed.monitor.agent("sync_stream")
    def sync_stream() -> Iterator[int]:
        yield 1
        raise error

    @observed.monitor.agent("async_stream")
    async def async_stream() -> AsyncIterator[int]:
        yield 1
        raise error

    with pytest.raises(Odd) as caught:
        list(sync_stream())
    assert caught.value is error
    with pytest.raises(Odd) as caught:
        _ = [item async for item in async_stream()]
    assert caught.value is error
    assert observed.statuses() == {"sync_stream": "failure", "async_stream": "failure"}


# Generators


def test_a_generator_answers_send_throw_and_returns_its_value(observed: Observed) -> None:
    @observed.monitor.agent("echo")
    def echo() -> Generator[str, str, int]:
        received, seen = "start", 0
        while received != "stop":
            assert current_run().span_id != NO_SPAN
            try:
                received = yield f"got {received}"
            except Odd as error:
                received = f"caught {error}"
            seen += 1
        return seen

    values: list[str] = []
    returned: list[int] = []

    def drive() -> Iterator[None]:
        stream = echo()
        values.append(next(stream))
        assert name_of_run() is None  # never current while the consumer has it
        values.append(stream.send("a"))
        values.append(stream.throw(Odd("b")))
        try:
            stream.send("stop")
        except StopIteration as stop:
            returned.append(stop.value)
        yield

    next(drive())
    assert (values, returned) == (["got start", "got a", "got caught b"], [3])
    row = observed.execution("echo")
    assert (row["status"], row["output_data"]) == ("success", '"got startgot agot caught b"')
    assert row["time_to_first_chunk_ms"] is not None


def test_yield_from_gets_the_return_value(observed: Observed) -> None:
    @observed.monitor.agent("inner")
    def inner() -> Generator[int, None, str]:
        yield 1
        return "done"

    def outer() -> Generator[int, None, str]:
        return (yield from inner())

    stream = outer()
    assert next(stream) == 1
    with pytest.raises(StopIteration) as stop:
        next(stream)
    assert stop.value.value == "done"


@pytest.mark.parametrize("leave", ["break", "close", "collect"])
def test_a_generator_left_early_is_cancelled_and_cleans_up(observed: Observed, leave: str) -> None:
    cleaned: list[str | None] = []

    @observed.monitor.agent("left")
    def left() -> Iterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            cleaned.append(name_of_run())

    stream = left()
    for _ in stream:
        break
    if leave == "close":
        assert isinstance(stream, Generator)
        stream.close()
    del stream
    gc.collect()
    row = observed.execution("left")
    assert (row["status"], row["error_type"], row["output_data"]) == ("cancelled", None, '"a"')
    assert cleaned == [row["span_id"]]  # its own clean-up still runs inside the run


def test_a_stream_that_is_never_started_is_no_execution(observed: Observed) -> None:
    @observed.monitor.agent("lazy")
    def lazy() -> Iterator[int]:
        yield 1

    lazy()
    gc.collect()
    assert observed.executions == []


def test_an_error_while_closing_reaches_the_consumer(observed: Observed) -> None:
    @observed.monitor.agent("stubborn")
    def stubborn() -> Generator[int, None, None]:
        try:
            yield 1
        finally:
            raise Odd("while closing")

    stream = stubborn()
    next(stream)
    with pytest.raises(Odd, match="while closing"):
        stream.close()
    assert observed.statuses() == {"stubborn": "failure"}


# Async generators


@pytest.mark.anyio
async def test_an_async_generator_answers_asend_and_athrow(observed: Observed) -> None:
    @observed.monitor.agent("echo")
    async def echo() -> AsyncGenerator[str, str]:
        received = "start"
        while received != "stop":
            await asyncio.sleep(0)
            assert current_run().span_id != NO_SPAN
            try:
                received = yield f"got {received}"
            except Odd as error:
                received = f"caught {error}"

    stream = echo()
    assert await anext(stream) == "got start"
    assert name_of_run() is None
    assert await stream.asend("a") == "got a"
    assert await stream.athrow(Odd("b")) == "got caught b"
    with pytest.raises(StopAsyncIteration):
        await stream.asend("stop")
    assert name_of_run() is None
    row = observed.execution("echo")
    assert (row["status"], row["output_data"]) == ("success", '"got startgot agot caught b"')


async def _break(stream: AsyncGenerator[str, None]) -> None:
    async for _ in stream:
        break
    await stream.aclose()


async def _collect(stream: AsyncGenerator[str, None]) -> None:
    async for _ in stream:
        break


async def _close_in_another_task(stream: AsyncGenerator[str, None]) -> None:
    await anext(stream)
    await asyncio.ensure_future(stream.aclose())


async def _steps_in_tasks_of_their_own(stream: AsyncGenerator[str, None]) -> None:
    await asyncio.ensure_future(anext(stream))
    await asyncio.ensure_future(stream.aclose())


async def _cancel_the_consumer_while_it_waits_for_a_chunk(stream: AsyncGenerator[str, None]) -> None:
    async def consume() -> None:
        async for _ in stream:
            pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _cancel_the_consumer_while_it_works_on_a_chunk(stream: AsyncGenerator[str, None]) -> None:
    async def consume(stream: AsyncGenerator[str, None]) -> None:
        async with contextlib.aclosing(stream):
            async for _ in stream:
                await asyncio.sleep(60)

    task = asyncio.create_task(consume(stream))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "leave",
    [
        _break,
        _collect,
        _close_in_another_task,
        _steps_in_tasks_of_their_own,
        _cancel_the_consumer_while_it_waits_for_a_chunk,
        _cancel_the_consumer_while_it_works_on_a_chunk,
    ],
)
@pytest.mark.anyio
async def test_an_async_generator_left_early_is_cancelled_and_cleans_up(
    observed: Observed, leave: Callable[[AsyncGenerator[str, None]], Any]
) -> None:
    cleaned: list[str | None] = []

    @observed.monitor.agent("left")
    async def left() -> AsyncGenerator[str, None]:
        run = current_run()
        assert run is not None
        try:
            with run.inference(provider="openai", model="m"):
                yield "a"
                await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.append(run.span_id)

    await leave(left())
    gc.collect()
    for _ in range(10):  # the loop's finaliser closes a collected stream in a task of its own
        await asyncio.sleep(0)
    assert name_of_run() is None
    row = observed.execution("left")
    assert (row["status"], row["error_type"], row["output_data"]) == ("cancelled", None, '"a"')
    assert [(step["status"], step["agent_span_id"]) for step in observed.steps] == [("cancelled", row["span_id"])]
    assert cleaned == [row["span_id"]]


@pytest.mark.anyio
async def test_closing_an_async_generator_waits_for_its_clean_up(observed: Observed) -> None:
    cleaned: list[str | None] = []

    @observed.monitor.agent("left")
    async def left() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            cleaned.append(name_of_run())

    stream = left()
    await anext(stream)
    await stream.aclose()
    assert cleaned == [observed.execution("left")["span_id"]]


def test_a_stream_abandoned_with_its_loop_is_cancelled(observed: Observed) -> None:
    @observed.monitor.agent("abandoned")
    async def abandoned() -> AsyncGenerator[int, None]:
        yield 1
        yield 2

    streams: list[AsyncGenerator[int, None]] = []

    async def main() -> None:
        streams.append(abandoned())
        await anext(streams[0])

    asyncio.run(main())  # its end closes open streams
    assert observed.statuses() == {"abandoned": "cancelled"}


@pytest.mark.anyio
async def test_a_stream_is_not_the_parent_of_what_its_consumer_does(observed: Observed) -> None:
    @observed.monitor.agent("producer")
    async def producer() -> AsyncIterator[int]:
        for item in range(2):
            with observed.monitor.execution("helper"):
                yield item

    @observed.monitor.agent("consumer")
    async def consumer() -> None:
        async for _ in producer():
            with observed.monitor.execution("between"):
                pass

    await consumer()
    by_agent = {row["agent_name"]: row for row in observed.executions}
    consumer_id, producer_id = by_agent["consumer"]["span_id"], by_agent["producer"]["span_id"]
    parents = [(row["agent_name"], row["parent_agent_span_id"]) for row in observed.executions]
    assert sorted(parents, key=str) == sorted(
        [("between", consumer_id)] * 2
        + [("helper", producer_id)] * 2
        + [("producer", consumer_id), ("consumer", None)],
        key=str,
    )


# The output of streams


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([], '""'),
        (["a", "b"], '"ab"'),
        ([{"card": 1}, "b"], '[{"card":1},"b"]'),
        ([None], "[null]"),
    ],
)
def test_the_output_of_a_stream_is_what_it_yielded(observed: Observed, chunks: list[Any], expected: str) -> None:
    @observed.monitor.agent("stream")
    def stream() -> Iterator[Any]:
        yield from chunks

    assert list(stream()) == chunks
    assert observed.execution("stream")["output_data"] == expected


def test_a_long_stream_keeps_its_beginning(observed: Observed) -> None:
    @observed.monitor.agent("long")
    def long() -> Iterator[str]:
        yield "first " + "x" * (1 << 18)
        for _ in range(1000):
            yield "y" * 1000

    assert sum(map(len, long())) == 6 + (1 << 18) + 1_000_000
    output = observed.execution("long")["output_data"] or ""
    assert "first" in output
    assert len(output.encode()) <= 8192


# Unconfigured


@pytest.mark.anyio
async def test_unconfigured_all_four_kinds_pass_through() -> None:
    agent = AgentMonitor().agent

    @agent("plain")
    def plain(x: int) -> int:
        assert current_run().span_id == NO_SPAN
        return x

    @agent("coroutine")
    async def coroutine(x: int) -> int:
        return x

    @agent("generator")
    def generator(x: int) -> Generator[int, int, int]:
        return (yield x)

    @agent("async_generator")
    async def async_generator(x: int) -> AsyncGenerator[int, int]:
        yield (yield x)

    assert (plain(1), await coroutine(2)) == (1, 2)
    stream = generator(3)
    assert next(stream) == 3
    with pytest.raises(StopIteration) as stop:
        stream.send(4)
    assert stop.value.value == 4
    chunks = async_generator(5)
    assert (await anext(chunks), await chunks.asend(6)) == (5, 6)
    await chunks.aclose()
