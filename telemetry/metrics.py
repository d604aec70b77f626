"""Metrics: every Prometheus series of executions and steps, observed from the same rows that are stored.

Names are what a collector makes of the GenAI conventions; what the conventions lack carries our prefix. Users,
sessions and request ids are never labels.
"""

from __future__ import annotations

import builtins
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from . import semconv
from .execution import Execution, Service, Step
from .semconv import Status, TokenType

OTHER: Final = "_OTHER"
_MOST_AGENTS: Final = 150  # of a process, exported before their first run
# The convention's bounds united with the thresholds service levels are set on, and the lengths of long runs.
_LEVELS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 900.0, 1800.0, 3600.0)
_POWERS = tuple(round(0.01 * 2**power, 2) for power in range(14))  # 0.01 … 81.92 s
AGENT_SECONDS = tuple(sorted({*(round(0.1 * 2**power, 1) for power in range(13)), *_LEVELS}))
CALL_SECONDS = tuple(sorted({*_POWERS, *_LEVELS}))
CHUNK_SECONDS = _POWERS
TOKENS = tuple(4**power for power in range(14))

# Error types that may be a label as they are; anything else is folded into `_OTHER`.
ERROR_TYPES = frozenset(
    {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    | {str(code) for code in (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)}
    | {"APIConnectionError", "APIError", "APIStatusError", "APITimeoutError", "AuthenticationError"}
    | {"BadRequestError", "ConflictError", "InternalServerError", "NotFoundError", "OverloadedError"}
    | {"PermissionDeniedError", "RateLimitError", "UnprocessableEntityError", "ValidationError"}
    | {"rate_limit_exceeded", "invalid_request_error", "server_error", "content_filter", "timeout"}
    | {
        "CancelledError",
        "JSONDecodeError",
        "ReadTimeout",
        "ConnectTimeout",
        "ConnectError",
        "run_limit",
        "process_died",
    }
)

M = TypeVar("M", bound=Counter | Histogram)


class Capped(Generic[M]):
    """A metric with at most `limit` label sets: beyond it the open-ended labels become `_OTHER`, and are counted."""

    def __init__(self, metric: M, limit: int, open_labels: Iterable[int], overflow: Counter) -> None:
        self.metric: M = metric
        self.limit = limit
        self._open = frozenset(open_labels)
        self._overflow = overflow
        self._children: dict[tuple[str, ...], M] = {}

    def labels(self, *values: str) -> M:
        """The child for these label values, cached."""
        known = self._children.get(values)
        if known is not None:
            return known
        fits = self.fits(*values)
        texts = label_values(*values)
        if not fits:
            self._overflow.inc()
            texts = [OTHER if index in self._open else text for index, text in enumerate(texts)]
        child = cast(M, self.metric.labels(*texts))
        if fits:
            self._children[values] = child
        return child

    def fits(self, *values: str) -> bool:
        """Whether these label values have, or may get, a child of their own."""
        return values in self._children or len(self._children) < self.limit


def label_values(*values: str) -> list[str]:
    """Label values that Prometheus can read back: no lone surrogates, and no novels."""
    return [value[:200].encode("utf-8", "replace").decode() for value in values]


@dataclass(slots=True)
class _Outcome:
    """The children that one way for an agent to end moves.

    Each keeps only its last exemplars and is scraped every few seconds, so the first of a second gets one, and
    whatever is slower than all before it in that second.
    """

    duration: Histogram
    executions: Counter
    requests: Counter
    second: int = 0
    slowest: float = 0.0
    observe: Callable[[float], object] = field(init=False)
    count_execution: Callable[[float], object] = field(init=False)
    count_request: Callable[[float], object] = field(init=False)

    def __post_init__(self) -> None:
        self.observe = _observer(self.duration)
        self.count_execution, self.count_request = _adder(self.executions), _adder(self.requests)

    def wants_exemplar(self, seconds: float, now: int) -> bool:
        if abs(now - self.second) < 1_000_000_000:
            if seconds <= self.slowest:
                return False
        else:
            self.second = now
        self.slowest = seconds
        return True


def _adder(counter: Counter) -> Callable[[float], object]:
    """Adds without an exemplar: the value's own `inc`, past what `Counter.inc` asks of it, which holds for a child."""
    return getattr(getattr(counter, "_value", None), "inc", counter.inc)


def _observer(histogram: Histogram) -> Callable[[float], object]:
    """Observes without an exemplar, as `_adder` adds; a bucket is found by bisection instead of one by one."""
    try:
        bounds, add = histogram._upper_bounds, histogram._sum.inc
        buckets = [bucket.inc for bucket in histogram._buckets]
    except AttributeError:  # a prometheus_client built otherwise
        return histogram.observe

    def observe(seconds: float) -> None:
        add(seconds)
        buckets[bisect_left(bounds, seconds)](1)

    return observe


class Metrics:
    """Everything observed of executions and steps.

    Args:
        registry: Where the series are registered; the caller's own, or the process' one.
        error_types: Names allowed as `error_type` beside `ERROR_TYPES`.
    """

    def __init__(self, registry: CollectorRegistry, *, error_types: Iterable[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
        self.registry = registry
        self._error_types = ERROR_TYPES | set(error_types)
        self.agents: set[tuple[Service, str]] = set()
        # The children of an agent's executions, found with one look-up instead of one for each metric; those of the
        # service that was last are at hand, for a process has rarely two and a service is slow to hash.
        self._outcomes: dict[Service, dict[tuple[str, str, str], _Outcome]] = {}
        self._latest: tuple[Service | None, dict[tuple[str, str, str], _Outcome]] = (None, {})
        self.overflow = Counter(
            "spanledger_label_overflow",
            "Observations whose labels were folded into _OTHER because the metric has its most label sets",
            ["metric"],
            registry=registry,
        )
        agent, model = "gen_ai_agent_name", "gen_ai_request_model"
        provider, operation = "gen_ai_provider_name", "gen_ai_operation_name"
        self.agent_duration = self._histogram(
            "gen_ai_invoke_agent_duration_seconds",
            "How long executions took",
            [agent, "error_type"],
            AGENT_SECONDS,
            150,
        )
        self.operation_duration = self._histogram(
            "gen_ai_client_operation_duration_seconds",
            "How long model calls took",
            [operation, provider, model, agent, "error_type"],
            CALL_SECONDS,
            100,
        )
        self.first_chunk = self._histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "From the start of a streamed model call to its first chunk",
            [operation, provider, model, agent],
            CHUNK_SECONDS,
            60,
        )
        self.token_usage = self._histogram(
            "gen_ai_client_token_usage",
            "Tokens per model call",
            [operation, provider, model, agent, "gen_ai_token_type"],
            TOKENS,
            100,
        )
        self.tool_duration = self._histogram(
            "gen_ai_execute_tool_duration_seconds",
            "How long tool calls took",
            ["gen_ai_tool_name", agent, "error_type"],
            CALL_SECONDS,
            60,
        )
        self.executions = self._counter(
            "spanledger_executions", "Ended executions of every agent", [agent, "status"], 900
        )
        self.requests = self._counter(
            "spanledger_requests", "Ended root executions: those with no agent above", [agent, "status"], 900
        )
        self.tokens = self._counter(
            "spanledger_tokens",
            "Tokens of model calls; input includes the cache classes, output includes reasoning",
            [agent, model, "gen_ai_token_type"],
            600,
        )
        self.cost = self._counter(
            "spanledger_cost_usd", "Known cost of model calls in USD", [agent, model, provider], 200
        )
        self.unpriced = self._counter(
            "spanledger_unpriced_tokens",
            "Tokens of model calls whose price is unknown",
            [agent, model, provider],
            200,
        )
        self.items = self._counter("spanledger_items", "What agents produced", [agent, "kind"], 100)

    def _histogram(
        self, name: str, text: str, labels: list[str], buckets: tuple[float, ...], limit: int
    ) -> Capped[Histogram]:
        metric = Histogram(name, text, [*_SERVICE, *labels], buckets=buckets, registry=self.registry)
        return Capped(metric, limit, _open_labels(labels), self.overflow.labels(name))

    def _counter(self, name: str, text: str, labels: list[str], limit: int) -> Capped[Counter]:
        metric = Counter(name, text, [*_SERVICE, *labels], registry=self.registry)
        return Capped(metric, limit, _open_labels(labels), self.overflow.labels(f"{name}_total"))

    def know_agent(self, service: Service, agent: str) -> None:
        """Export an agent's closed label sets at 0: a counter born at 1 never fires `increase() > 0`."""
        if (service, agent) not in self.agents and len(self.agents) < _MOST_AGENTS:
            self.agents.add((service, agent))
            for status in Status:
                self._outcome(service, agent, status.value, "")

    def observe_execution(self, execution: Execution) -> None:
        """One ended execution."""
        identity = execution.identity
        service, outcomes = self._latest
        if identity.service is not service:
            outcomes = self._outcomes.setdefault(identity.service, {})
            self._latest = (identity.service, outcomes)
        error = "" if identity.error_type is None else self._error(identity.error_type)
        key = (execution.agent_name, identity.status, error)
        outcome = outcomes.get(key) or self._outcome(identity.service, *key)
        seconds = (identity.end_time - identity.start_time) / 1e9
        if outcome.wants_exemplar(seconds, identity.end_time):
            exemplar = {"trace_id": identity.trace_id, "span_id": identity.span_id}
            outcome.duration.observe(seconds, exemplar)
            outcome.executions.inc(1, exemplar)
            if execution.is_root:
                outcome.requests.inc(1, exemplar)
            return
        outcome.observe(seconds)
        outcome.count_execution(1)
        if execution.parent_agent_span_id is None:
            outcome.count_request(1)

    def _outcome(self, service: Service, agent: str, status: str, error: str) -> _Outcome:
        place = where(service)
        fit = self.agent_duration.fits(*place, agent, error) and self.executions.fits(*place, agent, status)
        outcome = _Outcome(
            self.agent_duration.labels(*place, agent, error),
            self.executions.labels(*place, agent, status),
            self.requests.labels(*place, agent, status),
        )
        if fit and self.requests.fits(*place, agent, status):  # what is folded is counted each time
            self._outcomes.setdefault(service, {})[agent, status, error] = outcome
        return outcome

    def observe_items(self, execution: Execution, attributes: Mapping[str, Any]) -> None:
        """What an execution produced, by kind: its attributes `spanledger.items.KIND`."""
        for name, count in attributes.items():
            if name.startswith(semconv.ITEMS_PREFIX) and isinstance(count, int) and count >= 0:
                kind = name.removeprefix(semconv.ITEMS_PREFIX)
                self.items.labels(*where(execution.identity.service), execution.agent_name, kind).inc(count)

    def observe_step(self, step: Step) -> None:
        """One ended step."""
        identity, agent = step.identity, step.agent_name or semconv.UNATTRIBUTED
        place = where(identity.service)
        exemplar = {"trace_id": identity.trace_id, "span_id": identity.span_id}
        error = self._error(identity.error_type)
        if step.operation == semconv.EXECUTE_TOOL:
            tool = step.tool_name or ""
            self.tool_duration.labels(*place, tool, agent, error).observe(identity.seconds, exemplar)
        model, provider = step.request_model or step.response_model or "", step.provider or ""
        call = (*place, step.operation, provider, model, agent)
        if step.operation in semconv.INFERENCE:
            self.operation_duration.labels(*call, error).observe(identity.seconds, exemplar)
            if identity.time_to_first_chunk is not None:
                self.first_chunk.labels(*call).observe(identity.time_to_first_chunk, exemplar)
        usage = step.usage
        if usage is None:
            return
        self.token_usage.labels(*call, TokenType.INPUT.value).observe(usage.input_tokens, exemplar)
        self.token_usage.labels(*call, TokenType.OUTPUT.value).observe(usage.output_tokens, exemplar)
        for token_type, count in zip(_TOKEN_TYPES, usage[:5], strict=True):
            tokens = self.tokens.labels(*place, agent, model, token_type)
            if count:
                tokens.inc(count, exemplar)
        if usage.cost_usd is None:
            self.unpriced.labels(*place, agent, model, provider).inc(usage.tokens, exemplar)
        else:
            self.cost.labels(*place, agent, model, provider).inc(float(usage.cost_usd), exemplar)

    def _error(self, error_type: str | None) -> str:
        if error_type is None:
            return ""
        name = error_type.rpartition(".")[2]  # instrumentations write `openai.RateLimitError`
        return name if name in self._error_types else OTHER


_SERVICE = ("service_name", "deployment_environment_name")
_TOKEN_TYPES = tuple(
    kind.value
    for kind in (
        TokenType.INPUT,
        TokenType.CACHE_READ,
        TokenType.CACHE_WRITE,
        TokenType.OUTPUT,
        TokenType.REASONING,
    )
)
_CLOSED = frozenset({"status", "gen_ai_token_type", "gen_ai_operation_name"})


def where(service: Service) -> tuple[str, str]:
    """The label values that say which service it was."""
    return service.name, service.environment or ""


def _open_labels(labels: list[str]) -> list[int]:
    return [0, 1, *(index + len(_SERVICE) for index, name in enumerate(labels) if name not in _CLOSED)]
