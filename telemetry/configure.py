"""configure(): puts the parts together, once per process, beside whatever telemetry the process has already."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision, Sampler, StaticSampler
from prometheus_client import REGISTRY, CollectorRegistry, Histogram

from .content import Content
from .counts import Counts
from .crashed import crashed_line
from .execution import Service
from .guard import Guard
from .ledger import Ledger
from .metrics import Metrics
from .monitor import install
from .pipeline import DoorCollector, SpoolCollector, records_all
from .prices import Prices
from .processor import ExecutionProcessor
from .replay import Replay
from .runs import OpenSpans
from .sampling import AlwaysRecord
from .scope import Runtime
from .slots import Slots
from .spool import Spool
from .worker import Worker

if TYPE_CHECKING:
    import psycopg

    from .sink import PostgresSink

_logger = logging.getLogger("spanledger")
_SCOPE = "spanledger"
_OVERHEAD_SECONDS = tuple(round(1e-5 * 2**power, 5) for power in range(15))  # 10 µs … 164 ms


class Telemetry:
    """The configured parts. `tracer_provider` and `registry` are the host's own where it had them."""

    def __init__(
        self,
        tracer_provider: TracerProvider,
        registry: CollectorRegistry,
        metrics: Metrics,
        spool: Spool,
        sink: PostgresSink | None,
        prices: Prices,
        content: Content,
        sealer: Worker,
        counts: Callable[[], Counts],
    ) -> None:
        self.tracer_provider = tracer_provider
        self.registry = registry
        self.metrics = metrics
        self.spool = spool
        self.sink = sink
        self.prices = prices
        self.content = content
        self._sealer = sealer
        self._counts = counts
        self.service = Service.from_resource(tracer_provider.resource)

    @property
    def instance_id(self) -> str:
        """What tells this process' rows from another's (`service.instance.id`)."""
        return self.service.instance_id or ""

    def know_agent(self, *names: str) -> None:
        """Export agents at 0 before their first run."""
        for name in names:
            self.metrics.know_agent(self.service, name)

    def ledger(self) -> Ledger:
        """What came in, where it is now, and whether that adds up."""
        return Ledger.of(self._counts(), self.spool, self.sink)

    def flush(self, timeout: float = 10.0) -> bool:
        """Seal the spool and drain it into Postgres; True when nothing is left. Without a sink: sealed."""
        if self.sink is None:
            try:
                self.spool.seal()
            except OSError:
                return False
            return True
        return self.sink.drain(timeout)

    def shutdown(self, timeout: float = 10.0) -> bool:
        """Drain, stop the threads, export the last spans; False when rows are left on disk for the next start."""
        install(None)
        deadline = time.monotonic() + timeout
        self._sealer.stop(timeout)
        drained = self.sink.stop(timeout) if self.sink is not None else True
        try:
            if self.spool.runs is not None:
                _note(self.spool.runs, self._counts())
            self.spool.close()
        except OSError:  # the disk: nobody who stops can do anything about it, and what it has is adopted
            _logger.warning("the spool could not be closed", exc_info=True)
            drained = False
        # Rows first: a batch processor's flush knows no deadline.
        self.tracer_provider.force_flush(max(1, int((deadline - time.monotonic()) * 1000)))
        return drained


def configure(
    *,
    spool_dir: Path,
    connect: Callable[[], psycopg.Connection[Any]] | None = None,
    tracer_provider: TracerProvider | None = None,
    registry: CollectorRegistry | None = None,
    resource: Resource | None = None,
    span_exporter: SpanExporter | None = None,
    sampler: Sampler | None = None,
    spool_max_bytes: int = 1 << 30,
    spool_sync: bool = True,
    payload_max_bytes: int = 8192,
    redact: Iterable[str] = (),
    capture_content: bool = False,
    retention: timedelta = timedelta(days=35),
    drain_interval: float = 1.0,
    prices: Prices | None = None,
    error_types: Iterable[str] = (),
) -> Telemetry:
    """Start counting and storing agent executions in this process.

    A TracerProvider of the SDK that is already global (or given) is used as it is and gets one more span
    processor; otherwise one is made, with `resource`, `sampler` and `span_exporter`, and set globally. Sampling
    decides what a trace backend gets, never what is counted or stored.

    Args:
        spool_dir: Where rows wait for Postgres; on a local disk, kept across restarts.
        connect: Opens a psycopg connection to Postgres; None only spools.
        registry: Where metrics are registered; default: the process' own.
        spool_max_bytes: Bound on the spool; beyond it the newest rows are dropped, and counted.
        spool_sync: Commit to disk each second what was written. Without, loss of power costs what the kernel has
            not written by itself, about half a minute; a killed process loses nothing either way.
        payload_max_bytes: Bound on input and output of an execution, each.
        redact: Regexes over the JSON of payloads, beside the built-in ones.
        capture_content: Put payloads on exported spans too.
        retention: How old a row may be.
        drain_interval: Seconds a row waits, about, before it is committed to disk and loaded.
        prices: The price table; default: an empty one until `Telemetry.prices.load()`.
        error_types: Names of the host's own exceptions that may be a metric's `error_type`; others are `_OTHER`.

    Raises:
        ValueError: The registry has our metrics already.
        OSError: The spool directory cannot be made or written.
        re.error: A pattern in `redact` is no regular expression.
    """
    registry = REGISTRY if registry is None else registry
    content = Content(payload_max_bytes, redact)
    metrics = Metrics(registry, error_types=error_types)
    prices = prices or Prices()
    guard, spans = Guard(), OpenSpans()
    observe = Replay(metrics, guard).observe
    spool = Spool(spool_dir, max_bytes=spool_max_bytes, sync=spool_sync, crash=crashed_line, observe=observe)
    overhead = Histogram(
        "spanledger_overhead_seconds",
        "How long the start and the end of an execution's span took in our processor, of one in 64",
        buckets=_OVERHEAD_SECONDS,
        registry=registry,
    )
    processor = ExecutionProcessor(
        *(spool, metrics, spans, prices, content, guard), retention=retention.total_seconds(), overhead=overhead
    )
    provider, ours = _provider(tracer_provider, resource, sampler)
    try:
        spool.prepare(Service.from_resource(provider.resource).columns)
    except OSError:  # before anything of the host's is touched
        spool.close()
        raise
    _attach(processor, provider, ours, span_exporter)
    unsampled = TracerProvider(
        sampler=StaticSampler(Decision.RECORD_ONLY),
        resource=provider.resource,
        shutdown_on_exit=False,
        id_generator=provider.id_generator,
    )
    unsampled.add_span_processor(processor)
    sink = None
    if connect is not None:
        from .sink import PostgresSink  # psycopg is an extra

        sink = PostgresSink(spool, connect, guard, interval=drain_interval, retention=retention)
        sink.start()

    def counts() -> Counts:
        return Counts.of(processor, spans, spool, guard, metrics)

    registry.register(DoorCollector(spans, metrics, provider))
    registry.register(SpoolCollector(spool, sink, lambda: Counts.total([counts()])))
    sealer = Worker("spanledger-seal", lambda: _seal(spool, spans, guard, counts, drain_interval), drain_interval)
    spool.wake = sealer.wake
    sealer.start()
    telemetry = Telemetry(provider, registry, metrics, spool, sink, prices, content, sealer, counts)
    tracers = (provider.get_tracer(_SCOPE), unsampled.get_tracer(_SCOPE))
    install(Runtime(*tracers, spans, content, capture_content, guard, telemetry.know_agent, spool))
    return telemetry


def _seal(spool: Spool, spans: OpenSpans, guard: Guard, counts: Callable[[], Counts], interval: float) -> float:
    """Commit what was written, whether Postgres is there or not: a power loss costs no more than one interval."""
    try:
        runs = spool.runs
        if runs is not None:
            for trace_id, span_id in runs.cancelled():
                spans.cancel(trace_id, span_id)
            _note(runs, counts())
    except Exception:
        guard.report("spool")
    try:  # whatever became of the rest
        spool.seal()
    except Exception:
        guard.report("spool")
    return interval


def _note(runs: Slots, counts: Counts) -> None:
    """Leave the counts for a drain, without the agents' names where those are too many."""
    if not runs.note_counts(counts.to_json()):
        runs.note_counts(counts._replace(agents=frozenset()).to_json())


def _provider(
    provider: TracerProvider | None, resource: Resource | None, sampler: Sampler | None
) -> tuple[TracerProvider, bool]:
    """The host's provider, or one of our own, and whether it is ours."""
    existing = provider if provider is not None else trace.get_tracer_provider()
    if isinstance(existing, TracerProvider):
        return existing, False
    instance = Resource({"service.instance.id": str(uuid.uuid4())})
    resource = instance.merge(resource if resource is not None else Resource.create())
    return TracerProvider(sampler=AlwaysRecord(sampler or DEFAULT_ON), resource=resource), True


def _attach(processor: ExecutionProcessor, provider: TracerProvider, ours: bool, exporter: SpanExporter | None) -> None:
    """Add our processor; one of our own is made the global one."""
    if not ours and not records_all(provider.sampler):
        _logger.warning(
            "the host's sampler %s may drop spans of instrumented libraries before they are counted; "
            "wrap it in AlwaysRecord, of this package's module sampling",
            provider.sampler.get_description(),
        )
    provider.add_span_processor(processor)
    if ours:
        if exporter is not None:
            provider.add_span_processor(BatchSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
