"""The service with one door more: `POST /workload` carries out the plan. `uvicorn tests.end_to_end.workload:app`."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

from fastapi import Request
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from app.main import create_app
from telemetry import AgentMonitor, Run, current_run
from tests.end_to_end import plan
from tests.end_to_end.plan import CANCELLED, FAILURE, SUCCESS, TIMEOUT, Call, Node

monitor = AgentMonitor()
app = create_app()
PLANNED = (ValueError, TimeoutError)


@app.post("/workload")
async def workload(request: Request) -> dict[str, int]:
    """Carry the plan out, half of it inside this request's span, half outside any."""
    telemetry = request.app.state.telemetry
    await asyncio.to_thread(telemetry.prices.load)
    worker = Worker(telemetry.tracer_provider.get_tracer("a framework"))
    roots = plan.make()
    for first in range(0, len(roots), 20):  # twenty at a time
        tasks = []
        for number, root in enumerate(roots[first : first + 20]):
            context = contextvars.Context() if number % 2 else contextvars.copy_context()
            tasks.append(asyncio.get_running_loop().create_task(worker.start(root), context=context))
        await asyncio.gather(*tasks)
    gc.collect()  # the streams that were dropped
    await asyncio.sleep(1.5)  # the sink seals every second: what is late comes in another segment
    worker.release.set()
    await asyncio.gather(*worker.late)
    await asyncio.to_thread(telemetry.tracer_provider.force_flush)
    return {"roots": len(roots)}


class Worker:
    """Carries out nodes. `late` are the tasks that wait for `release` before they end."""

    def __init__(self, tracer: Tracer) -> None:
        self.release = asyncio.Event()
        self.late: list[asyncio.Task[None]] = []
        self._tracer = tracer
        self._streams = 0

    async def start(self, node: Node) -> None:
        """Run a node as its caller does; what it raises is planned and stays here."""
        match node.kind:
            case "function" | "generator":
                await asyncio.to_thread(self._start_in_thread, node)
            case "foreign" | "report" | "lone_call":
                with suppress(*PLANNED):
                    self._foreign(node)
            case "async_generator":
                await self._read(node)
            case _ if node.status is CANCELLED:
                begun = asyncio.Event()
                task = asyncio.create_task(self._perform(node, begun))
                await begun.wait()
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            case _:
                with suppress(*PLANNED):
                    await self._perform(node, asyncio.Event())

    async def _perform(self, node: Node, begun: asyncio.Event) -> None:
        """A block or a coroutine."""
        if node.kind == "block":
            with monitor.execution(node.agent, user_id="u-1", input={"kind": node.kind}) as run:
                await self._work(node, run)
                await self._end(node, begun)
                run.output = "done"
            return

        @monitor.agent(node.agent, version="2")
        async def coroutine(kind: str) -> str:
            await self._work(node, _run())
            await self._end(node, begun)
            return "done"

        await coroutine(node.kind)

    async def _read(self, node: Node) -> None:
        """Read a stream to its end, or leave it: closed at once, or dropped and finalised by the event loop."""

        @monitor.agent(node.agent)
        async def stream(kind: str) -> AsyncIterator[str]:
            yield "one"
            await self._work(node, _run())
            yield "two"
            if node.status is not CANCELLED:
                await self._end(node, asyncio.Event())

        chunks: Any = stream(node.kind)
        with suppress(*PLANNED):
            async for chunk in chunks:
                if chunk == "two" and node.status is CANCELLED:
                    break
        self._streams += 1
        if self._streams % 2:
            await chunks.aclose()

    async def _work(self, node: Node, run: Run) -> None:
        for call in node.calls:
            if call.late:
                self.late.append(asyncio.create_task(self._late_call(run, call)))
            else:
                _call(run, call)
        for tool in node.tools:
            with run.tool(tool, arguments={"q": 1}) as used:
                used.output = 2
        children = node.children[:-1] if _passes_through(node) else node.children
        for child in children:
            if child.late:
                self.late.append(asyncio.create_task(self._perform(child, asyncio.Event())))
        await asyncio.gather(*(self.start(child) for child in children if not child.late))

    async def _end(self, node: Node, begun: asyncio.Event) -> None:
        if _passes_through(node):
            await self._perform(node.children[-1], begun)
        if node.late:
            await self.release.wait()
        if node.status is FAILURE:
            raise ValueError("planned")
        if node.status is TIMEOUT:
            async with asyncio.timeout(0.002):
                await asyncio.sleep(60)
        if node.status is CANCELLED:
            begun.set()
            await asyncio.sleep(60)

    async def _late_call(self, run: Run, call: Call) -> None:
        with run.inference(provider=call.provider, model=call.model) as inference:
            await self.release.wait()
            _usage(inference.usage, call)

    def _start_in_thread(self, node: Node) -> None:
        def work() -> None:
            run = _run()
            for call in node.calls:
                _call(run, call)
            for tool in node.tools:
                with run.tool(tool):
                    pass

        def end() -> None:
            if node.status is FAILURE:
                raise ValueError("planned")
            if node.status is TIMEOUT:
                raise TimeoutError

        @monitor.agent(node.agent)
        def function(kind: str) -> str:
            work()
            end()
            return "done"

        @monitor.agent(node.agent)
        def generator(kind: str) -> Iterator[int]:
            work()
            yield 1
            end()

        with suppress(*PLANNED):
            if node.kind == "function":
                function(node.kind)
                return
            for _ in generator(node.kind):
                if node.status is CANCELLED:
                    break

    def _foreign(self, node: Node) -> None:
        """Spans of an instrumentation that knows nothing of us and repeats its calls' usage on what is around."""
        if node.kind == "lone_call":
            self._chat(node.calls[0])
            return
        agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": node.agent}
        with self._tracer.start_as_current_span(f"invoke_agent {node.agent}", attributes=agent) as span:
            span.set_attribute("gen_ai.usage.input_tokens", sum(call.input for call in node.calls))
            span.set_attribute("gen_ai.usage.output_tokens", sum(call.output for call in node.calls))
            if node.kind == "report":
                span.set_attribute("gen_ai.provider.name", node.calls[0].provider)
                span.set_attribute("gen_ai.request.model", node.calls[0].model)
                return
            for call in node.calls:
                with self._tracer.start_as_current_span("chat wrapper", attributes=_attributes(call)):
                    self._chat(call)
            for tool in node.tools:
                used = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool}
                with self._tracer.start_as_current_span(f"execute_tool {tool}", attributes=used):
                    pass
            if node.status is FAILURE:
                span.set_attribute("error.type", "ValueError")
                span.set_status(Status(StatusCode.ERROR, "planned"))

    def _chat(self, call: Call) -> None:
        named = {"gen_ai.operation.name": "chat"}
        with self._tracer.start_as_current_span("chat", kind=SpanKind.CLIENT, attributes=named) as span:
            span.set_attributes(_attributes(call))


def _passes_through(node: Node) -> bool:
    """Whether its end is that of its last child: an error nobody catches, a cancellation of both."""
    last = node.children[-1] if node.children else None
    return (
        last is not None
        and node.status is not SUCCESS
        and last.status is node.status
        and {node.kind, last.kind} <= {"block", "coroutine"}
    )


def _run() -> Run:
    run = current_run()
    assert run is not None
    return run


def _call(run: Run, call: Call) -> None:
    with run.inference(provider=call.provider, model=call.model) as inference:
        if call.streamed:
            inference.first_chunk()
        _usage(inference.usage, call)


def _usage(report: Callable[..., None], call: Call) -> None:
    report(
        input_tokens=call.input,
        cache_read_tokens=call.cache_read,
        cache_write_tokens=call.cache_write,
        output_tokens=call.output,
        reasoning_tokens=call.reasoning,
        cost_usd=None if call.stated_usd is None else Decimal(call.stated_usd),
    )


def _attributes(call: Call) -> dict[str, str | int]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": call.provider,
        "gen_ai.request.model": call.model,
        "gen_ai.usage.input_tokens": call.input,
        "gen_ai.usage.cache_read.input_tokens": call.cache_read,
        "gen_ai.usage.output_tokens": call.output,
        "gen_ai.usage.reasoning.output_tokens": call.reasoning,
    }
