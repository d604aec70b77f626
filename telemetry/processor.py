"""ExecutionProcessor: the door. Every span enters and leaves here, and becomes what is counted and stored."""

from __future__ import annotations

import json
import time
from collections import Counter
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanContext, format_span_id
from prometheus_client import Histogram

from . import semconv
from .aside import set_aside
from .content import Content
from .execution import Execution, Identity, Service, Step
from .fork import in_child
from .guard import Guard
from .metrics import Metrics
from .prices import Prices
from .runs import OpenSpan, OpenSpans
from .spool import EXECUTIONS, STEPS, Spool, SpoolError
from .usage import Usage, read_tokens

DROP_REASONS = ("disk_error", "disk_stalled", "error", "spool_closed", "spool_full")
REJECT_REASONS = ("timestamp",)
EXECUTION_STATES = ("started", "ended", "spooled", "dropped", "rejected")  # `ended` is the sum of the last three
_MOST_USD = 1_000_000  # a dearer call is a sender's mistake
_MOST_AGENTS = 1024  # whose names are kept
_SAMPLED = 64  # of so many executions, one is timed
_FUTURE = 3600 * 1_000_000_000  # ns a sender's clock may be ahead


class ExecutionProcessor(SpanProcessor):
    """Turns ended GenAI spans into metrics and rows, on the thread that ends them.

    Args:
        retention: How old a row may be, in seconds; older ones and those of the future are set aside.
        overhead: Observes how long the start and the end of an execution's span took here, of one in 64.
    """

    def __init__(
        self,
        spool: Spool,
        metrics: Metrics,
        spans: OpenSpans,
        prices: Prices,
        content: Content,
        guard: Guard,
        *,
        retention: float,
        overhead: Histogram,
    ) -> None:
        self.dropped: Counter[str] = Counter(dict.fromkeys(DROP_REASONS, 0))
        self.rejected: Counter[str] = Counter(dict.fromkeys(REJECT_REASONS, 0))
        self.executions: Counter[str] = Counter(dict.fromkeys(EXECUTION_STATES, 0))
        self._spool = spool
        self._metrics = metrics
        self._spans = spans
        self._prices = prices
        self._content = content
        self._guard = guard
        self._overhead = overhead
        self._retention = int(retention * 1e9)
        spans.on_evict = self._on_evict
        in_child(self._after_fork)
        self._service: tuple[Resource | None, Service] = (None, Service("", None, None, None, None))
        self._agents: set[str] = set()  # of that service, known to the metrics: a name is quicker to find than both

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Enter the span; under an execution it learns its agent's name and the caller's ids."""
        began = time.perf_counter()
        try:
            attributes = _attributes(span)
            context, parent = span.context, span.parent
            opened = self._spans.start(context, parent, attributes)
            if opened.learns:
                learned = opened.caller.missing(attributes)
                if opened.agent_name is not None and semconv.AGENT_NAME not in attributes:
                    learned[semconv.AGENT_NAME] = opened.agent_name
                span.set_attributes(learned)
            if opened.holds_execution:
                self.executions["started"] = started = self.executions["started"] + 1
                service, agent = self._service_of(span.resource), opened.agent_name or semconv.UNATTRIBUTED
                if agent not in self._agents:
                    self._know_agent(service, agent)
                opened.started_at = span.start_time or 0
                self._record(context, parent, attributes, opened)
                if started % _SAMPLED == 0:
                    opened.overhead = time.perf_counter() - began
        except Exception:
            self._guard.report("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        """Count and store the span, if it is one of GenAI."""
        began = time.perf_counter()
        opened = None
        try:
            opened = self._spans.pop(span.context)
            self._end(span, opened)
        except Exception:
            if opened is not None and opened.started_at:  # an execution of which there will be no row
                self.executions.update(("ended", "dropped"))
            self.dropped["error"] += 1
            self._guard.report("on_end")
        if opened is None:
            return
        try:
            # After its row is written, or it could be lost in between.
            self._release(opened)
            if opened.overhead:
                self._overhead.observe(opened.overhead + time.perf_counter() - began)
        except Exception:
            self._guard.report("on_end")

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Commit what was written to disk; the sink takes it from there."""
        try:
            self._spool.seal()
        except OSError:
            self._guard.report("spool")
            return False
        return True

    def _know_agent(self, service: Service, agent: str) -> None:
        self._metrics.know_agent(service, agent)
        if len(self._agents) < _MOST_AGENTS:
            self._agents.add(agent)

    def _record(
        self, context: SpanContext, parent: SpanContext | None, attributes: dict[str, Any], opened: OpenSpan
    ) -> None:
        """Note the run where it can be found when this process is killed."""
        runs = self._spool.runs
        if runs is not None:
            above = opened.execution
            document = [
                opened.agent_name or semconv.UNATTRIBUTED,
                semconv.string(attributes, semconv.AGENT_VERSION),
                None if parent is None else format_span_id(parent.span_id),
                None if above is None else format_span_id(above.span_id),
                *opened.caller,
            ]
            trace_id, span_id = context[:2]
            opened.ids = trace_id.to_bytes(16, "big") + span_id.to_bytes(8, "big")
            try:
                encoded = orjson.dumps(document)
            except TypeError:  # lone surrogates, which JSON can say but UTF-8 cannot
                encoded = json.dumps(document).encode()
            opened.slot = runs.take(opened.ids, opened.started_at, encoded)

    def _release(self, opened: OpenSpan) -> None:
        if opened.slot is not None and self._spool.runs is not None:
            self._spool.runs.release(opened.slot, opened.ids)
            opened.slot = None

    def _on_evict(self, opened: OpenSpan) -> None:
        """An execution that is taken for ended: in the books it is one without a row. If it ends, it is another."""
        if opened.started_at:
            self.executions.update(("ended", "dropped"))
            opened.started_at = 0
        self._release(opened)

    def _after_fork(self) -> None:
        """What is counted so far is the parent's."""
        for counter in (self.dropped, self.rejected, self.executions, self._guard.counts):
            counter.update({name: -count for name, count in counter.items()})

    def _end(self, span: ReadableSpan, opened: OpenSpan | None) -> None:
        attributes = _attributes(span)
        operation = attributes.get(semconv.OPERATION)
        if operation is None:
            return
        operation = str(operation)
        service = self._service_of(span.resource)
        if opened is None:  # never started here, or forgotten: it stands alone, and its steps tell its usage
            opened = OpenSpan(span.context.span_id, attributes, None)
            opened.ended = operation == semconv.INVOKE_AGENT
        identity = Identity.from_span(span, attributes, opened.caller, service, self._content)
        if operation == semconv.INVOKE_AGENT:
            if opened.holds_execution:  # else it became an agent after its start: its calls went elsewhere
                self._add_own_report(identity, attributes, opened)
            opened.holds_execution = True
        else:
            opened.holds_execution |= operation in semconv.INFERENCE and opened.execution is None
            self._end_step(identity, operation, attributes, opened)
        if opened.holds_execution:
            if not opened.started_at:  # it did not start here, or became an execution later
                self.executions["started"] += 1
            self._end_execution(identity, attributes, opened)
        opened.forget()

    def _end_step(self, identity: Identity, operation: str, attributes: dict[str, Any], opened: OpenSpan) -> None:
        usage, late = None, False
        provider = semconv.string(attributes, semconv.PROVIDER)
        request_model = semconv.string(attributes, semconv.REQUEST_MODEL)
        response_model = semconv.string(attributes, semconv.RESPONSE_MODEL)
        if operation in semconv.INFERENCE and not opened.covered:
            usage = read_tokens(attributes)
            if usage is not None:
                usage = self._priced(usage, provider, (response_model, request_model), attributes, identity)
                late = not self._spans.add_usage(opened, usage, provider, request_model or response_model)
        self._store_step(
            Step(
                identity,
                operation,
                opened.agent_name,
                _span_id(opened if opened.holds_execution else opened.execution),
                semconv.string(attributes, semconv.TOOL_NAME),
                request_model,
                response_model,
                provider,
                usage,
                late,
                opened.input or self._payload(attributes, semconv.INPUT_MESSAGES, semconv.TOOL_ARGUMENTS),
                opened.output or self._payload(attributes, semconv.OUTPUT_MESSAGES, semconv.TOOL_RESULT),
            )
        )

    def _end_execution(self, identity: Identity, attributes: dict[str, Any], opened: OpenSpan) -> None:
        self.executions["ended"] += 1
        opened.started_at = 0
        where = "dropped"
        try:
            execution = self._execution(identity, attributes, opened)
            where = self._append(EXECUTIONS, execution.line(), identity)
        finally:
            self.executions[where] += 1
        try:
            self._metrics.observe_execution(execution)
            if identity.attributes != b"{}":
                self._metrics.observe_items(execution, attributes)
        except Exception:
            self._guard.report("metrics")

    def _execution(self, identity: Identity, attributes: dict[str, Any], opened: OpenSpan) -> Execution:
        own, total, late = self._spans.end_execution(opened)
        above = opened.execution
        fields = (
            identity,
            opened.agent_name or semconv.UNATTRIBUTED,
            semconv.string(attributes, semconv.AGENT_VERSION),
            None if above is None else format_span_id(above.span_id),
            own,
            total,
            opened.model or semconv.string(attributes, semconv.REQUEST_MODEL),
            opened.provider or semconv.string(attributes, semconv.PROVIDER),
            late,
            opened.input or self._payload(attributes, semconv.INPUT_MESSAGES),
            opened.output or self._payload(attributes, semconv.OUTPUT_MESSAGES),
        )
        return tuple.__new__(Execution, fields)  # past a named tuple's own `__new__`, a call of Python from C

    def _add_own_report(self, identity: Identity, attributes: dict[str, Any], opened: OpenSpan) -> None:
        """Usage an agent span states beyond what its descendants reported becomes a step of its own.

        Frameworks repeat their children's usage on the agent; only what no model call accounts for is added.
        """
        reported = read_tokens(attributes)
        extra = reported.beyond(opened.total) if reported is not None else None
        if extra is None:
            return
        provider = semconv.string(attributes, semconv.PROVIDER) or opened.provider
        model = semconv.string(attributes, semconv.REQUEST_MODEL) or opened.model
        usage = self._priced(extra, provider, (model,), {}, identity)
        self._spans.add_usage(opened, usage, provider, model)
        name, span_id = opened.agent_name, identity.span_id
        self._store_step(
            Step(
                identity._replace(parent_span_id=span_id, attributes=b"{}", time_to_first_chunk=None),
                semconv.INVOKE_AGENT,
                *(name, span_id, None, model, None, provider, usage, False, None, None),
            )
        )

    def _priced(
        self,
        usage: Usage,
        provider: str | None,
        models: tuple[str | None, ...],
        attributes: dict[str, Any],
        identity: Identity,
    ) -> Usage:
        """The usage with its cost: what the sender states, else what the price table knows of the first of `models`."""
        stated = attributes.get(semconv.USAGE_COST)
        if isinstance(stated, int | float | str) and not isinstance(stated, bool):
            try:
                cost = Decimal(str(stated))
                if cost.is_finite() and 0 <= cost <= _MOST_USD:
                    return usage._replace(cost_usd=cost, cost_source="provider")
            except InvalidOperation:
                pass
        for model in models:
            known = self._prices.cost(provider, model, usage, identity.end_time)
            if known is not None:
                return usage._replace(cost_usd=known, cost_source="local")
        return usage._replace(cost_usd=None, cost_source="unknown")

    def _payload(self, attributes: dict[str, Any], *names: str) -> bytes | None:
        for name in names:
            value = attributes.get(name)
            if value is not None:
                return self._content.encode_json(value) if isinstance(value, str) else self._content.encode(value)
        return None

    def _store_step(self, step: Step) -> None:
        self._append(STEPS, step.line(), step.identity)
        try:
            self._metrics.observe_step(step)
        except Exception:
            self._guard.report("metrics")

    def _append(self, table: str, line: bytes, identity: Identity) -> str:
        """Write the row, or count why not; which of `spooled`, `dropped`, `rejected` it is."""
        age = time.time_ns() - identity.end_time
        try:
            if -_FUTURE <= age <= self._retention:
                self._spool.append(table, line)
                return "spooled"
            set_aside(self._spool.directory, table, line, "timestamp", f"ended {age / 1e9:.0f} s ago")
        except (SpoolError, OSError) as error:
            self.dropped[error.reason if isinstance(error, SpoolError) else "disk_error"] += 1
            self._guard.report("spool")
            return "dropped"
        self.rejected["timestamp"] += 1
        return "rejected"

    def _service_of(self, resource: Resource) -> Service:
        known, service = self._service
        if resource is not known:
            service = Service.from_resource(resource)
            self._service = (resource, service)
            self._agents = set()
        return service


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span, as a dict to read from."""
    try:
        # The SDK's own dict: its public copy takes a proxy, a length and a copy, on the path of every call.
        return span._attributes._dict  # type: ignore[union-attr,no-any-return]
    except AttributeError:
        return dict(span.attributes or {})


def _span_id(opened: OpenSpan | None) -> str | None:
    return None if opened is None else format_span_id(opened.span_id)
