"""AgentMonitor: what the developer of an agent uses. It opens and closes spans; everything else follows from them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

import orjson
from opentelemetry.trace import Span, SpanKind, get_current_span

from . import semconv
from .scope import Runtime, Scope
from .usage import NONE, Usage
from .wrap import wrap

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=Scope)
_UNSET: Any = object()
_runtime: Runtime | None = None
_agents: set[str] = set()  # the decorated ones, which are exported at 0 before their first run


def install(runtime: Runtime | None) -> None:
    """Make `runtime` the one that monitors use; None takes it away."""
    global _runtime
    _runtime = runtime
    if runtime is not None:
        for name in _agents:
            runtime.know_agent(name)


class Inference(Scope):
    """A model call: a CLIENT span `chat MODEL`, whose usage is what its execution costs."""

    _reported = False

    def usage(
        self,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
        cost_usd: Decimal | float | None = None,
    ) -> None:
        """Report what the call consumed; a later report replaces an earlier one.

        Input includes the cache classes, output includes reasoning. `cost_usd` is the price the provider stated;
        left out, the price table decides, and an unknown price stays unknown. A stated price stays until another
        is stated.
        """
        again, self._reported = self._reported, True
        self.set_attribute(semconv.INPUT_TOKENS, input_tokens)
        self.set_attribute(semconv.OUTPUT_TOKENS, output_tokens)
        if cache_read_tokens or again:
            self.set_attribute(semconv.CACHE_READ_TOKENS, cache_read_tokens)
        if cache_write_tokens or again:
            self.set_attribute(semconv.CACHE_WRITE_TOKENS, cache_write_tokens)
        if reasoning_tokens or again:
            self.set_attribute(semconv.REASONING_TOKENS, reasoning_tokens)
        if cost_usd is not None:
            self.set_attribute(semconv.USAGE_COST, float(cost_usd))


class Tool(Scope):
    """A tool call: an INTERNAL span `execute_tool NAME`. Set `output` to what it returned."""

    arguments: Any = None
    output: Any = None

    def _begin(self, runtime: Runtime) -> None:
        if self._opened is not None:
            self._opened.input = runtime.content.encode(self.arguments)

    def _finish(self, runtime: Runtime, span: Span) -> None:
        if self._opened is not None:
            self._opened.output = runtime.content.encode(self.output)
        if runtime.capture_content and self._opened is not None:
            _set_json(span, semconv.TOOL_ARGUMENTS, self._opened.input)
            _set_json(span, semconv.TOOL_RESULT, self._opened.output)


class Run(Scope):
    """One execution of an agent. Set `output` to what it produced; `items` says how much of what."""

    def __init__(self, runtime: Runtime | None, agent: str, attributes: dict[str, Any], payload: Any) -> None:
        Scope.__init__(self, runtime, f"invoke_agent {agent}", SpanKind.INTERNAL, attributes)
        self._input = payload
        self._items: dict[str, int] = {}
        self._task: asyncio.Task[Any] | None = None
        self.cancel_requested = False
        self.output: Any = _UNSET

    @property
    def input(self) -> Any:
        """What the agent was given; stored as it is at the start, or when set."""
        return self._input

    @input.setter
    def input(self, payload: Any) -> None:
        self._input = payload
        if self._runtime is not None:
            self._guarded(self._runtime, self._begin, self._runtime)

    @property
    def tokens_total(self) -> int:
        """Tokens so far, sub-agents included."""
        return self._total().tokens

    @property
    def cost_total_usd(self) -> Decimal | None:
        """The known cost so far, sub-agents included; None when none is known."""
        return self._total().cost_usd

    def inference(self, *, provider: str, model: str, operation: str = "chat") -> Inference:
        """A call to a model, as a `with` block; `operation` is one of the conventions' inference operations."""
        attributes = {semconv.OPERATION: operation, semconv.PROVIDER: provider, semconv.REQUEST_MODEL: model}
        return self._child(Inference(self._runtime, f"{operation} {model}", SpanKind.CLIENT, attributes))

    def tool(self, name: str, arguments: Any = None) -> Tool:
        """A call to a tool, as a `with` block."""
        attributes = {semconv.OPERATION: semconv.EXECUTE_TOOL, semconv.TOOL_NAME: name}
        tool = self._child(Tool(self._runtime, f"execute_tool {name}", SpanKind.INTERNAL, attributes))
        tool.arguments = arguments
        return tool

    def record_usage(self, *, provider: str, model: str, **usage: Any) -> None:
        """Report a model call that was made elsewhere; takes what `Inference.usage` takes."""
        with self.inference(provider=provider, model=model) as call:
            call.usage(**usage)

    def items(self, kind: str, count: int) -> None:
        """Add to what the agent produced: cards, questions, words … (`spanledger_items_total{kind}`)."""
        self._items[kind] = self._items.get(kind, 0) + count
        self.set_attribute(f"{semconv.ITEMS_PREFIX}{kind}", self._items[kind])

    def cancel(self) -> None:
        """Ask the run to end, from any thread. The task it was started in is cancelled; code that runs in none has to
        look at `cancel_requested`."""
        self.cancel_requested = True
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._task.get_loop().call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task is not None and self._opened is not None and self._opened.run is self:  # it has not ended
            self._task.cancel()

    def returned(self, result: Any) -> None:
        """Take the function's result as output, unless it has set one."""
        if self.output is _UNSET:
            self.output = result

    def _total(self) -> Usage:
        return NONE if self._opened is None else self._opened.total

    def _child(self, scope: S) -> S:
        """Put the scope under this run, unless the current span is one of its own."""
        if self._runtime is not None:
            current = self._runtime.spans.get(get_current_span().get_span_context())
            holder = current if current is None or current.holds_execution else current.execution
            if holder is None or holder is not self._opened:
                scope.within(self._context)
        return scope

    def _begin(self, runtime: Runtime) -> None:
        opened = self._opened
        if opened is None:
            return
        opened.run = self
        opened.input = runtime.content.encode(self._input)
        loop = asyncio.events._get_running_loop()
        self._task = None if loop is None else asyncio.current_task(loop)
        if opened.slot is not None and opened.input is not None and runtime.spool.runs is not None:
            runtime.spool.runs.note_input(opened.slot, opened.input)

    def _finish(self, runtime: Runtime, span: Span) -> None:
        opened = self._opened
        if opened is None:
            return
        if self.output is not _UNSET:
            opened.output = runtime.content.encode(self.output)
        total = opened.total
        if total is not NONE and total.tokens:
            span.set_attribute(semconv.INPUT_TOKENS, total.input_tokens)
            span.set_attribute(semconv.OUTPUT_TOKENS, total.output_tokens)
        if runtime.capture_content:
            _set_messages(span, semconv.INPUT_MESSAGES, "user", opened.input)
            _set_messages(span, semconv.OUTPUT_MESSAGES, "assistant", opened.output)


def _set_json(span: Span, name: str, payload: bytes | None) -> None:
    if payload is not None:
        span.set_attribute(name, payload.decode())


def _set_messages(span: Span, name: str, role: str, payload: bytes | None) -> None:
    """A payload as the conventions' message list."""
    if payload is not None:
        part = {"type": "text", "content": payload.decode()}
        span.set_attribute(name, orjson.dumps([{"role": role, "parts": [part]}]).decode())


class AgentMonitor:
    """Makes executions of agents visible. Unconfigured, everything here passes through and does nothing.

    A deadline set outside the agent (`asyncio.timeout` around the call) reaches it as a cancellation and is stored as
    `cancelled`; one set inside is a `timeout`.
    """

    def execution(
        self,
        agent: str,
        *,
        version: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
        request_id: str | None = None,
        input: Any = None,
    ) -> Run:
        """One execution as a `with` block. Ids left out come from the agent above, or from `bind`."""
        attributes: dict[str, Any] = {semconv.OPERATION: semconv.INVOKE_AGENT, semconv.AGENT_NAME: agent}
        if version is not None:
            attributes[semconv.AGENT_VERSION] = version
        if user_id is not None:
            attributes[semconv.USER_ID] = user_id
        if session_id is not None:
            attributes[semconv.SESSION_ID] = session_id
        if request_id is not None:
            attributes[semconv.REQUEST_ID] = request_id
        return Run(_runtime, agent, attributes, input)

    def agent(self, name: str, *, version: str | None = None) -> Callable[[F], F]:
        """Decorate a function, coroutine, generator or async generator: each call becomes one execution.

        Its arguments are the input, its result (or what it yielded) is the output, unless it sets
        `current_run().output` itself.
        """

        _agents.add(name)
        if _runtime is not None:
            _runtime.know_agent(name)

        def decorate(function: F) -> F:
            return wrap(function, lambda payload: self.execution(name, version=version, input=payload))

        return decorate


def current_run() -> Run:
    """The innermost execution this code runs in, opened by a monitor; outside of any, a run that does nothing."""
    if _runtime is not None:
        opened = _runtime.spans.get(get_current_span().get_span_context())
        while opened is not None:
            if isinstance(opened.run, Run):
                return opened.run
            opened = opened.execution
    return Run(None, "", {}, None)
