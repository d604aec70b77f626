"""The pipeline's own metrics: what the spool holds, what the sink stored, what was lost and why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from .guard import Guard
from .metrics import OTHER, Metrics, label_values, where
from .processor import ExecutionProcessor
from .runs import OpenSpans
from .sampling import AlwaysRecord
from .spool import Spool

if TYPE_CHECKING:
    from .sink import PostgresSink  # psycopg is an extra

_PLACES = ("metrics", "monitor", "on_end", "on_start", "sink", "spool")


class DoorCollector(Collector):
    """What enters the processor and does not get out of it, read at each scrape."""

    def __init__(
        self, processor: ExecutionProcessor, spans: OpenSpans, metrics: Metrics, provider: TracerProvider
    ) -> None:
        self._processor = processor
        self._spans = spans
        self._metrics = metrics
        self._provider = provider

    def describe(self) -> Iterable[Metric]:
        """Nothing: a collect at registration would read parts that are not running yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One family per number; every reason is there from the first scrape."""
        yield _counter("spanledger_rows_dropped", "Rows lost, by reason", "reason", self._processor.dropped)
        yield CounterMetricFamily(
            "spanledger_open_spans_evicted", "Open spans forgotten: too many never ended", self._spans.evicted
        )
        yield GaugeMetricFamily("spanledger_open_spans", "Spans started and not ended", len(self._spans))
        yield self._in_flight()
        yield self._tracer_provider()

    def _in_flight(self) -> Metric:
        """Counted when somebody asks: keeping a gauge up to date would cost every execution a tenth of its price."""
        family = GaugeMetricFamily(
            "spanledger_executions_in_flight",
            "Executions that have started and not ended",
            labels=["service_name", "deployment_environment_name", "gen_ai_agent_name"],
        )
        running = self._spans.executions()
        for service, agent in sorted(self._metrics.agents, key=str):
            family.add_metric(label_values(*where(service), agent), running.pop(agent, 0))
        if running:
            family.add_metric([OTHER, OTHER, OTHER], running.total())
        return family

    def _tracer_provider(self) -> Metric:
        """What we are attached to now: a host may set another provider after us, and then its spans pass us by."""
        family = GaugeMetricFamily(
            "spanledger_tracer_provider_info",
            "The tracer provider the library is attached to",
            labels=["provider", "sampler", "records"],
        )
        place = "global" if trace.get_tracer_provider() is self._provider else "other"
        sampler = self._provider.sampler
        family.add_metric([place, sampler.get_description(), "all" if records_all(sampler) else "sampled"], 1)
        return family


class SpoolCollector(Collector):
    """What waits in the spool, what the sink stored, what was set aside: read at each scrape.

    The parts count for themselves and know no Prometheus. `rejected` are their counts of rows set aside, by reason.
    """

    def __init__(
        self, spool: Spool, sink: PostgresSink | None, guard: Guard, rejected: Iterable[Mapping[str, int]]
    ) -> None:
        self._spool = spool
        self._sink = sink
        self._guard = guard
        self._rejected = tuple(rejected)

    def describe(self) -> Iterable[Metric]:
        """Nothing: a collect at registration would read parts that are not running yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One family per number; every reason and place is there from the first scrape."""
        errors = dict.fromkeys(_PLACES, 0) | self._guard.counts
        yield _counter("spanledger_errors", "Errors of our own, caught at the door", "where", errors)
        rejected: Counter[str] = Counter()
        for counts in self._rejected:
            rejected.update(dict(counts))  # a copy: the sink's thread adds to it
        yield _counter("spanledger_rows_rejected", "Rows set aside in rejected.ndjson", "reason", rejected)
        yield from _collect_spool(self._spool)
        if self._sink is not None:
            yield from _collect_sink(self._sink)


def records_all(sampler: Sampler) -> bool:
    """Whether spans that this sampler keeps from a trace backend are recorded, and so counted, all the same."""
    return sampler is ALWAYS_ON or isinstance(sampler, AlwaysRecord)


def _collect_spool(spool: Spool) -> Iterable[Metric]:
    oldest = spool.oldest
    yield GaugeMetricFamily("spanledger_spool_bytes", "Bytes waiting in the spool", spool.pending_bytes())
    yield GaugeMetricFamily("spanledger_spool_capacity_bytes", "Bytes the spool may hold", spool.max_bytes)
    yield GaugeMetricFamily("spanledger_spool_segments", "Sealed segments waiting", spool.segments)
    yield GaugeMetricFamily(
        "spanledger_spool_oldest_age_seconds",
        "Age of the oldest sealed segment; 0 when none waits",
        max(0.0, time.time() - oldest) if oldest else 0.0,
    )
    yield CounterMetricFamily(
        "spanledger_spool_torn_lines", "Lines cut off by a crash, found at adoption", spool.torn_lines
    )


def _collect_sink(sink: PostgresSink) -> Iterable[Metric]:
    yield _counter("spanledger_sink_rows_stored", "Rows stored in Postgres", "table", sink.stored)
    yield _counter("spanledger_sink_rows_duplicate", "Replayed rows that were there already", "table", sink.duplicates)
    yield SummaryMetricFamily(
        "spanledger_sink_batch_seconds", "How long batches took to load", sink.batches, sink.batch_seconds
    )
    yield GaugeMetricFamily(
        "spanledger_sink_lag_seconds", "From the end of the newest batch's first row to its commit", sink.lag
    )
    yield CounterMetricFamily("spanledger_sink_failures", "Attempts to drain that failed", sink.failures)
    yield GaugeMetricFamily(
        "spanledger_sink_last_success_timestamp_seconds", "When the spool was last drained", sink.last_success
    )


def _counter(name: str, text: str, label: str, counts: Mapping[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(dict(counts).items()):  # a copy: other threads count on
        family.add_metric([value], count)
    return family
