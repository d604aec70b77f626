"""Open spans: what is running, under which execution, and the usage it has gathered so far.

Every recording span is entered at its start and leaves at its end. An entry points to the execution it belongs
to (the nearest agent above), so usage flows to its agent however many other spans lie between, agent name and
caller reach every child, and the tree never counts a token twice.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.trace import SpanContext

from . import semconv
from .caller import Caller, bound_caller
from .fork import in_child
from .usage import NONE, Usage


class OpenSpan:
    """One span between its start and its end. `input` and `output` are payloads as JSON, already redacted."""

    __slots__ = (
        "agent_name",
        "caller",
        "covered",
        "ended",
        "execution",
        "holds_execution",
        "ids",
        "input",
        "learns",
        "model",
        "operation",
        "output",
        "overhead",
        "own",
        "parent",
        "provider",
        "run",
        "slot",
        "span_id",
        "started_at",
        "total",
    )
    caller: Caller
    holds_execution: bool

    def __init__(self, span_id: int, attributes: Mapping[str, Any], parent: OpenSpan | None) -> None:
        operation = attributes.get(semconv.OPERATION)
        self.operation = operation
        self.span_id = span_id
        self.parent = parent
        self.execution: OpenSpan | None = None
        caller = stated = Caller.stated(attributes)
        if parent is not None:
            self.execution = parent if parent.holds_execution else parent.execution
            caller = caller.over(parent.caller)
        self.caller = caller.over(bound_caller()) if None in caller else caller
        self.learns = self.execution is not None or self.caller is not stated
        # A model call outside any agent is an execution of its own: its usage never waits for an agent to come.
        self.holds_execution = operation == semconv.INVOKE_AGENT or (
            operation in semconv.INFERENCE and self.execution is None
        )
        name = semconv.string(attributes, semconv.AGENT_NAME)
        if name is None and not self.holds_execution and self.execution is not None:
            name = self.execution.agent_name
        self.agent_name: str | None = name
        self.own = NONE
        self.total = NONE
        self.model: str | None = None
        self.provider: str | None = None
        self.run: Any = None  # the monitor's handle on it, for `current_run`
        self.overhead = 0.0  # seconds its start took here, where that is measured
        self.started_at = 0  # of an execution, in ns since the epoch
        self.slot: int | None = None  # where it is recorded, so that it is not lost with the process
        self.ids = b""  # trace and span id, as it is recorded there
        self.covered = False
        self.ended = False
        self.input: bytes | None = None
        self.output: bytes | None = None

    def forget(self) -> None:
        """Let go of what only an open span needs: a remembered one would keep payloads and results alive."""
        self.parent = self.run = self.input = self.output = None


class OpenSpans:
    """The open spans of this process, and those of executions that ended lately.

    Bounded: beyond `limit` the oldest open span is taken for ended, though it is not, and counted in `evicted`; what
    belongs to it is late from then on. The last `remembered` are kept for children that start or end later.

    Keys are trace and span id: a SpanContext is a tuple that begins with them, and a slice is one step where its
    properties are two calls.
    """

    def __init__(self, limit: int = 100_000, remembered: int = 256) -> None:
        self.limit = limit
        self.remembered = remembered
        self.evicted = 0
        self.on_evict: Callable[[OpenSpan], None] = lambda opened: None
        # Ordered: a plain dict looks for its oldest entry past all that were taken out before it.
        self._open: OrderedDict[tuple[int, int], OpenSpan] = OrderedDict()
        self._ended: OrderedDict[tuple[int, int], OpenSpan] = OrderedDict()
        # Reentrant: a collection inside may close a generator whose run ends then.
        self._lock = threading.RLock()
        in_child(self._after_fork)

    def _after_fork(self) -> None:
        """Another thread of the parent may have held it."""
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._open)

    def executions(self) -> list[tuple[str, int]]:
        """Agent and start (ns since the epoch) of every open execution."""
        return [
            (opened.agent_name or semconv.UNATTRIBUTED, opened.started_at)
            for opened in self._open.copy().values()
            if opened.holds_execution
        ]

    def start(self, context: SpanContext, parent: SpanContext | None, attributes: Mapping[str, Any]) -> OpenSpan:
        """Enter a span."""
        above = None
        if parent is not None:
            key = parent[:2]
            above = self._open.get(key) or self._ended.get(key)
        key = context[:2]
        opened = OpenSpan(key[1], attributes, above)
        if len(self._open) >= self.limit:
            self._evict()
        self._open[key] = opened
        return opened

    def get(self, context: SpanContext) -> OpenSpan | None:
        """The entry of an open span."""
        return self._open.get(context[:2])

    def pop(self, context: SpanContext) -> OpenSpan | None:
        """Take out a span that ends; None when it never started here, or was forgotten long ago."""
        key = context[:2]
        opened = self._open.pop(key, None)
        if opened is None:
            return self._ended.get(key)  # evicted
        if opened.holds_execution or opened.execution is not None:
            self._ended[key] = opened  # as `_remember` does it
            if len(self._ended) > self.remembered:
                _pop_oldest(self._ended)
        return opened

    def cancel(self, trace_id: int, span_id: int) -> None:
        """Ask a run of the monitor to end; nothing where it has ended."""
        opened = self._open.get((trace_id, span_id))
        if opened is not None and opened.run is not None:
            opened.run.cancel()

    def add_usage(self, opened: OpenSpan, usage: Usage, provider: str | None, model: str | None) -> bool:
        """Give the usage of a model call to its execution; False when that has ended already (late)."""
        holder = opened if opened.holds_execution else opened.execution
        step = opened.parent
        with self._lock:
            while step is not None and step is not holder:  # wrappers above repeat what this call reported
                step.covered = True
                step = step.parent
            if holder is None:
                return False
            if holder.ended:
                self._add_to_open(holder.execution, usage)
                return False
            if holder is not opened:
                holder.covered = True
            holder.own = holder.own.plus(usage)
            holder.total = holder.total.plus(usage)
            holder.model = model or holder.model
            holder.provider = provider or holder.provider
            return True

    def end_execution(self, opened: OpenSpan) -> tuple[Usage, Usage, bool]:
        """Close an execution's books and pass its total on to the execution above.

        Its own usage, that with its sub-agents', and whether it is late: something ended before it.
        """
        with self._lock:
            above = opened.execution
            late = opened.ended or (above is not None and above.ended)
            opened.ended = True
            if above is not None:
                self._add_to_open(above, opened.total)
            return opened.own, opened.total, late

    def _add_to_open(self, above: OpenSpan | None, usage: Usage) -> None:
        """Pass usage to the nearest execution still open; those that ended before are settled where they are stored."""
        while above is not None and above.ended:
            above = above.execution
        if above is not None:
            above.total = above.total.plus(usage)

    def _evict(self) -> None:
        oldest = _pop_oldest(self._open)
        if oldest is not None:
            key, opened = oldest
            with self._lock:
                opened.ended = True
                self.evicted += 1
            self.on_evict(opened)
            self._remember(key, opened)

    def _remember(self, key: tuple[int, int], opened: OpenSpan) -> None:
        self._ended[key] = opened
        if len(self._ended) > self.remembered:
            _pop_oldest(self._ended)


def _pop_oldest(spans: OrderedDict[tuple[int, int], OpenSpan]) -> tuple[tuple[int, int], OpenSpan] | None:
    """Take the oldest entry out; None where other threads were quicker."""
    try:
        return spans.popitem(last=False)
    except KeyError:
        return None
