"""The pipeline's own metrics: what the spool holds, what the sink stored, what was lost and why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from .counts import Counts, Place
from .inflight import open_runs
from .ledger import Ledger
from .metrics import OTHER, Metrics, label_values, where
from .runs import OpenSpans
from .sampling import AlwaysRecord
from .spool import Spool

if TYPE_CHECKING:
    from .sink import PostgresSink  # psycopg is an extra


class DoorCollector(Collector):
    """What runs in this process, and what it is attached to: read at each scrape."""

    def __init__(self, spans: OpenSpans, metrics: Metrics, provider: TracerProvider) -> None:
        self._spans = spans
        self._metrics = metrics
        self._provider = provider

    def describe(self) -> Iterable[Metric]:
        """Nothing: a collect at registration would read parts that are not running yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One family per number."""
        yield from self._in_flight()
        yield self._tracer_provider()

    def _in_flight(self) -> Iterable[Metric]:
        """Counted when somebody asks: keeping gauges up to date would cost every execution a tenth of its price."""
        agents = ((*where(service), agent) for service, agent in sorted(self._metrics.agents, key=str))
        known = {place[2]: place for place in agents}  # a process has one service
        other = (OTHER, OTHER, OTHER)
        return in_flight(
            known.values(), ((known.get(agent, other), started_at) for agent, started_at in self._spans.executions())
        )

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
    """What waits in the spool, what the sink stored, what was lost on the way: read at each scrape.

    The parts count for themselves and know no Prometheus. `counts` tells those of every process that is observed here.
    """

    def __init__(self, spool: Spool, sink: PostgresSink | None, counts: Callable[[], Counts]) -> None:
        self._spool = spool
        self._sink = sink
        self._counts = counts

    def describe(self) -> Iterable[Metric]:
        """Nothing: a collect at registration would read parts that are not running yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One family per number; every reason and place is there from the first scrape."""
        counts = self._counts()
        rejected = Counter(counts.rejected)
        rejected.update(dict(self._sink.rejected) if self._sink is not None else {})
        yield _counter("spanledger_errors", "Errors of our own, caught at the door", "where", counts.errors)
        yield _counter("spanledger_rows_dropped", "Rows lost, by reason", "reason", counts.dropped)
        yield _counter("spanledger_rows_rejected", "Rows set aside in rejected.ndjson", "reason", rejected)
        for name, text, number in (
            ("spanledger_open_spans_evicted", "Open spans forgotten: too many never ended", counts.evicted),
            ("spanledger_runs_unrecorded", "Runs that no slot was free for", counts.unrecorded_runs),
            ("spanledger_spool_queued_lines", "Lines that waited in memory for a slow disk", counts.queued_lines),
            ("spanledger_spool_torn_lines", "Lines cut off by a crash, found at adoption", self._spool.torn_lines),
        ):
            yield CounterMetricFamily(name, text, number)
        yield GaugeMetricFamily("spanledger_open_spans", "Spans started and not ended", counts.open_spans)
        yield from _collect_ledger(Ledger.of(counts, self._spool, self._sink))
        yield from _collect_spool(self._spool)
        if self._sink is not None:
            yield from _collect_sink(self._sink)


class RunsCollector(Collector):
    """What runs in the living processes of a spool directory."""

    def __init__(self, spool: Spool, metrics: Metrics) -> None:
        self._spool = spool
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing: a collect at registration would read parts that are not running yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Read from their files."""
        runs = open_runs(self._spool.directory)
        known = {(*where(service), agent) for service, agent in self._metrics.agents.copy()}
        places = [((run.service[0] or "", run.service[3] or "", run.agent_name), run.started_at) for run in runs]
        other = (OTHER, OTHER, OTHER)
        return in_flight(known, ((place if place in known else other, started_at) for place, started_at in places))


def in_flight(known: Iterable[Place], runs: Iterable[tuple[Place, int]]) -> Iterable[Metric]:
    """How many executions run, and how long the oldest has: by service, environment and agent, 0 for the known ones."""
    counts: Counter[Place] = Counter(dict.fromkeys(known, 0))
    oldest: dict[Place, int] = {}
    for place, started_at in runs:
        counts[place] += 1
        oldest[place] = min(started_at, oldest.get(place, started_at))
    labels = ["service_name", "deployment_environment_name", "gen_ai_agent_name"]
    number = GaugeMetricFamily(
        "spanledger_executions_in_flight", "Executions that have started and not ended", labels=labels
    )
    age = GaugeMetricFamily(
        "spanledger_executions_oldest_age_seconds", "How long the oldest of them has run; 0 without any", labels=labels
    )
    now = time.time_ns()
    for place, count in counts.items():
        number.add_metric(label_values(*place), count)
        age.add_metric(label_values(*place), max(0, now - oldest[place]) / 1e9 if place in oldest else 0.0)
    return number, age


def records_all(sampler: Sampler) -> bool:
    """Whether spans that this sampler keeps from a trace backend are recorded, and so counted, all the same."""
    return sampler is ALWAYS_ON or isinstance(sampler, AlwaysRecord)


def _collect_ledger(ledger: Ledger) -> Iterable[Metric]:
    yield CounterMetricFamily("spanledger_ledger_started", "Executions that started", ledger.door.started)
    yield CounterMetricFamily("spanledger_ledger_sealed", "Rows handed to the sink", ledger.store.sealed)
    unexplained = GaugeMetricFamily(
        "spanledger_ledger_unexplained",
        "Executions (at the door) and rows (in the store) that are neither here nor there; 0, but for a moment",
        labels=["part"],
    )
    unexplained.add_metric(["door"], ledger.door.unexplained())
    unexplained.add_metric(["store"], ledger.store.unexplained())
    yield unexplained


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
