"""Execution and Step: the rows, derived from an ended span, field by field, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode, format_span_id

from . import copytext, semconv
from .caller import Caller
from .content import Content
from .copytext import number, period, timestamp
from .semconv import Status
from .usage import NONE, Usage

_NULL = copytext.NULL
_NO_TOKENS = "\t".join("0" * 6)
_NO_COST = "\t".join([_NULL] * 3)
_NO_USAGE = (None,) * 5
_TIMEOUTS = frozenset(
    {"timeout", "deadline_exceeded", "DeadlineExceeded", "APITimeoutError", "ReadTimeout", "ConnectTimeout"}
    | {"WriteTimeout", "PoolTimeout", "TimeoutException"}
)
_CANCELLATIONS = frozenset({"CancelledError", "GeneratorExit", "KeyboardInterrupt", "cancelled"})
# Attributes that have a column of their own; the rest is kept in `attributes`.
_COLUMNS = frozenset(
    {semconv.OPERATION, semconv.AGENT_NAME, semconv.AGENT_VERSION, semconv.PROVIDER, semconv.REQUEST_MODEL}
    | {semconv.RESPONSE_MODEL, semconv.TIME_TO_FIRST_CHUNK, semconv.TOOL_NAME, semconv.TOOL_ARGUMENTS}
    | {semconv.TOOL_RESULT, semconv.INPUT_MESSAGES, semconv.OUTPUT_MESSAGES, semconv.INPUT_TOKENS}
    | {semconv.OUTPUT_TOKENS, semconv.CACHE_READ_TOKENS, semconv.CACHE_WRITE_TOKENS, semconv.REASONING_TOKENS}
    | {semconv.USAGE_COST, semconv.ERROR_TYPE, semconv.USER_ID, semconv.SESSION_ID, semconv.REQUEST_ID}
    | {semconv.STATUS}
    | {alias for aliases in semconv.ALIASES.values() for alias in aliases}
)


@dataclass(frozen=True, slots=True)
class Service:
    """Which process a span comes from, from its resource. `columns` is the same as a row has it, `text` as a line."""

    name: str
    namespace: str | None
    version: str | None
    environment: str | None
    instance_id: str | None
    columns: tuple[str | None, ...] = field(init=False, repr=False, compare=False)
    text: str = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        values = (self.name, self.namespace, self.version, self.environment, self.instance_id)
        object.__setattr__(self, "columns", values)
        object.__setattr__(self, "text", "\t".join(copytext.fields(*values)))
        object.__setattr__(self, "_hash", hash(values))

    def __hash__(self) -> int:
        return self._hash  # a key of every look-up of a metric

    @classmethod
    def from_resource(cls, resource: Resource) -> Service:
        attributes = resource.attributes
        values = (
            attributes.get("service.name", "unknown_service"),
            attributes.get("service.namespace"),
            attributes.get("service.version"),
            attributes.get("deployment.environment.name", attributes.get("deployment.environment")),
            attributes.get("service.instance.id"),
        )
        service, *rest = (None if value is None else str(value) for value in values)
        return cls(service or "unknown_service", *rest)


class Identity(NamedTuple):
    """What a span is, where it stands and how it went: shared by executions and steps. Times in ns, UTC."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    start_time: int
    end_time: int
    status: str  # a Status
    error_type: str | None
    error_message: str | None
    time_to_first_chunk: float | None
    caller: Caller
    service: Service
    attributes: bytes

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end_time - self.start_time) / 1e9

    @classmethod
    def from_span(
        cls,
        span: ReadableSpan,
        attributes: Mapping[str, Any],
        caller: Caller,
        service: Service,
        content: Content,
    ) -> Identity:
        (trace_id, span_id), parent = span.context[:2], span.parent  # one slice instead of two properties
        status, error_type, error_message = _outcome(span, attributes)
        end = span.end_time or 0
        rest = b"{}"
        if not _COLUMNS.issuperset(attributes):
            rest = content.encode({name: attributes[name] for name in attributes if name not in _COLUMNS}) or rest
        first = attributes.get(semconv.TIME_TO_FIRST_CHUNK)
        fields = (
            f"{trace_id:032x}",
            f"{span_id:016x}",
            format_span_id(parent.span_id) if parent is not None else None,
            min(span.start_time or 0, end),  # a clock that was set back meanwhile must not make it shorter than nothing
            end,
            status,
            error_type,
            content.text(error_message) if error_message is not None else None,
            None if first is None else _seconds(first),
            caller,
            service,
            rest,
        )
        return tuple.__new__(cls, fields)  # past a named tuple's own `__new__`, a call of Python from C

    def duration_ms(self) -> str:
        """How long it took, to the nanosecond, as the span has it."""
        duration = self.end_time - self.start_time
        whole = duration // 1_000_000
        return f"{whole}.{str(1_000_000 + duration - whole * 1_000_000)[1:]}"

    def time_to_first_chunk_ms(self) -> str | None:
        first = self.time_to_first_chunk
        return None if first is None else str(round(first * 1e3, 3))


class Execution(NamedTuple):
    """One agent run: a row of `agent_executions`."""

    identity: Identity
    agent_name: str
    agent_version: str | None
    parent_agent_span_id: str | None
    own: Usage
    total: Usage
    model: str | None
    provider: str | None
    late: bool
    input: bytes | None
    output: bytes | None

    @property
    def is_root(self) -> bool:
        """Whether it is a request: no agent above it."""
        return self.parent_agent_span_id is None

    def line(self) -> bytes:
        """The row as COPY text, columns in the order of `EXECUTION_COLUMNS`."""
        # A field of a named tuple costs as much as a small call: both are unpacked at once.
        identity, agent, version, above, own, total, model, provider, late, given, answer = self
        trace_id, span_id, parent, start, end, status, error, message, chunk, caller, service, rest = identity
        # What a sender wrote is escaped; ids in hex, numbers and words of ours need no look.
        who = _known_agents.get((agent, version)) or _agent_text(agent, version)
        user, session, request = copytext.fields(*caller)
        if model is provider is error is message is None:
            model = provider = error = message = _NULL
        else:
            model, provider, error, message = copytext.fields(model, provider, error, message)
        first = _NULL if chunk is None else identity.time_to_first_chunk_ms()
        tokens = _NO_TOKENS if own is NONE else f"{own.tokens}\t" + "\t".join(map(str, own[:5]))
        cost = _NO_COST if total is NONE else _cost_text(own, total)
        return copytext.row(
            f"{'t' if late else 'f'}\t{trace_id}\t{span_id}\t{parent or _NULL}\t{above or _NULL}"
            f"\t{period(start, end)}\t{'t' if above is None else 'f'}\t{status}\t{who}"
            f"\t{user}\t{session}\t{request}\t{service.text}\t{identity.duration_ms()}\t{first}"
            f"\t{tokens}\t{total.input_tokens + total.output_tokens}\t{model}\t{provider}\t{cost}\t{error}\t{message}",
            (rest, given, answer),
        )


class Step(NamedTuple):
    """One model call, tool call or retrieval inside an execution: a row of `execution_steps`."""

    identity: Identity
    operation: str
    agent_name: str | None
    agent_span_id: str | None
    tool_name: str | None
    request_model: str | None
    response_model: str | None
    provider: str | None
    usage: Usage | None
    late: bool
    input: bytes | None
    output: bytes | None

    def line(self) -> bytes:
        """The row as COPY text, columns in the order of `STEP_COLUMNS`."""
        identity, usage = self.identity, self.usage
        return copytext.line(
            (
                "t" if self.late else "f",
                identity.trace_id,
                identity.span_id,
                identity.parent_span_id,
                self.agent_span_id,
                timestamp(identity.start_time),
                timestamp(identity.end_time),
                self.operation,
                identity.status,
                self.agent_name,
                *identity.caller,
                *identity.service.columns,
                identity.duration_ms(),
                identity.time_to_first_chunk_ms(),
                self.tool_name,
                self.request_model,
                self.response_model,
                self.provider,
                *(_NO_USAGE if usage is None else map(str, usage[:5])),
                number(usage.cost_usd if usage is not None else None),
                usage.cost_source if usage is not None else None,
                identity.error_type,
                identity.error_message,
            ),
            (identity.attributes, self.input, self.output),
        )


_SERVICE_COLUMNS = (
    *("user_id", "session_id", "request_id"),
    *("service_name", "service_namespace", "service_version", "environment", "instance_id"),
)
_TOKEN_COLUMNS = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
)
_LAST_COLUMNS = ("error_type", "error_message", "attributes", "input_data", "output_data")
EXECUTION_COLUMNS = (
    *("late", "trace_id", "span_id", "parent_span_id", "parent_agent_span_id", "started_at", "created_at"),
    *("is_root", "status", "agent_name", "agent_version", *_SERVICE_COLUMNS),
    *("execution_time_ms", "time_to_first_chunk_ms", "tokens_used", *_TOKEN_COLUMNS, "tokens_total"),
    *("model_used", "provider", "cost_usd", "cost_total_usd", "cost_source", *_LAST_COLUMNS),
)
STEP_COLUMNS = (
    *("late", "trace_id", "span_id", "parent_span_id", "agent_span_id", "started_at", "created_at"),
    *("operation", "status", "agent_name", *_SERVICE_COLUMNS, "duration_ms", "time_to_first_chunk_ms"),
    *("tool_name", "request_model", "response_model", "provider", *_TOKEN_COLUMNS, "cost_usd", "cost_source"),
    *_LAST_COLUMNS,
)


_known_agents: dict[tuple[str, str | None], str] = {}


def _agent_text(agent: str, version: str | None) -> str:
    text = "\t".join(copytext.fields(agent, version))
    if len(_known_agents) < 1024 and len(text) < 256:
        _known_agents[agent, version] = text
    return text


def _cost_text(own: Usage, total: Usage) -> str:
    costs = (number(own.cost_usd), number(total.cost_usd), total.cost_source)
    return "\t".join([_NULL if cost is None else cost for cost in costs])


def _seconds(value: object) -> float | None:
    """A duration a sender stated, if it is one."""
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else None


def _outcome(span: ReadableSpan, attributes: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    """Status, error type and message. Our own spans say `cancelled` by attribute: it is no error."""
    stated = attributes.get(semconv.STATUS)
    error_type = attributes.get(semconv.ERROR_TYPE)
    outcome = span.status
    if error_type is None and outcome.status_code is not StatusCode.ERROR:
        return _SUCCESS if stated is None else _STATUSES.get(stated, _SUCCESS), None, None
    message = outcome.description
    for event in span.events if error_type is None or message is None else ():
        if event.name == "exception" and event.attributes:
            error_type = error_type or event.attributes.get("exception.type")
            message = message or str(event.attributes.get("exception.message", ""))
    error_type = str(error_type or "_OTHER")
    if stated in _STATUSES:
        return _STATUSES[stated], error_type, message
    name = error_type.rsplit(".", 1)[-1]
    if name in _TIMEOUTS or name.endswith("TimeoutError"):
        return Status.TIMEOUT.value, error_type, message
    if name in _CANCELLATIONS:
        return Status.CANCELLED.value, error_type, message
    return Status.FAILURE.value, error_type, message


_STATUSES: dict[Any, str] = {status.value: status.value for status in Status}
_SUCCESS = Status.SUCCESS.value
