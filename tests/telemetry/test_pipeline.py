from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from prometheus_client import CollectorRegistry

from telemetry import AlwaysRecord
from telemetry.counts import Counts
from telemetry.guard import Guard
from telemetry.pipeline import SpoolCollector
from telemetry.processor import DROP_REASONS
from telemetry.sink import PostgresSink
from tests.telemetry.conftest import Observe
from tests.telemetry.observed import Observed


def numbers(observed: Observed) -> dict[str, float]:
    """Every sample of the pipeline, without those of executions and steps."""
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in observed.registry.collect()
        for sample in family.samples
        if "gen_ai_agent_name" not in sample.labels
        and not sample.name.startswith(("spanledger_label_overflow", "spanledger_overhead"))
    }


PLACES = ("metrics", "monitor", "on_end", "on_start", "sink", "spool")
AT_REST = {
    **{
        f"spanledger_errors_total {where}": 0 for where in ("metrics", "monitor", "on_end", "on_start", "sink", "spool")
    },
    **{f"spanledger_rows_dropped_total {why}": 0 for why in DROP_REASONS},
    "spanledger_rows_rejected_total timestamp": 0,
    "spanledger_open_spans_evicted_total": 0,
    "spanledger_open_spans": 0,
    "spanledger_spool_bytes": 0,
    "spanledger_spool_capacity_bytes": 1 << 30,
    "spanledger_spool_segments": 0,
    "spanledger_spool_oldest_age_seconds": 0,
    "spanledger_spool_torn_lines_total": 0,
    "spanledger_spool_queued_lines_total": 0,
    "spanledger_runs_unrecorded_total": 0,
    "spanledger_ledger_started_total": 0,
    "spanledger_ledger_sealed_total": 0,
    **{f"spanledger_ledger_unexplained {part}": 0 for part in ("door", "store")},
    "spanledger_tracer_provider_info other AlwaysOnSampler all": 1,
}


def test_every_number_is_there_from_the_first_scrape(observed: Observed) -> None:
    assert numbers(observed) == AT_REST


def test_what_waits_is_seen(observed: Observed) -> None:
    with observed.monitor.execution("a"):
        assert numbers(observed)["spanledger_open_spans"] == 1
    assert numbers(observed)["spanledger_open_spans"] == 0
    waiting = numbers(observed)["spanledger_spool_bytes"]
    assert waiting > 0
    assert len(observed.executions) == 1  # sealed by reading
    after = numbers(observed)
    assert (after["spanledger_spool_segments"], after["spanledger_spool_bytes"]) == (1, waiting)
    assert 0 <= after["spanledger_spool_oldest_age_seconds"] < 60


@pytest.mark.parametrize(
    ("sampler", "labels"),
    [
        (ALWAYS_OFF, "AlwaysOffSampler sampled"),
        (AlwaysRecord(ALWAYS_OFF), "AlwaysRecord{AlwaysOffSampler} all"),
    ],
)
def test_the_provider_we_are_attached_to_is_named(
    observe: Observe, monkeypatch: pytest.MonkeyPatch, sampler: Sampler, labels: str
) -> None:
    observed = observe(sampler=sampler)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: observed.provider)
    assert numbers(observed)[f"spanledger_tracer_provider_info global {labels}"] == 1


def refused() -> psycopg.Connection[Any]:
    raise psycopg.OperationalError("away")


def test_the_sinks_numbers_are_there_when_it_runs(observe: Observe) -> None:
    observed = observe(connect=refused, drain_interval=3600.0)
    more = numbers(observed).keys() - AT_REST.keys()
    assert {name for name in more if "rejected" not in name} == {
        "spanledger_sink_rows_stored_total executions",
        "spanledger_sink_rows_stored_total steps",
        "spanledger_sink_rows_duplicate_total executions",
        "spanledger_sink_rows_duplicate_total steps",
        "spanledger_sink_batch_seconds_count",
        "spanledger_sink_batch_seconds_sum",
        "spanledger_sink_lag_seconds",
        "spanledger_sink_failures_total",
        "spanledger_sink_last_success_timestamp_seconds",
    }


def test_the_series_budget_of_the_docs(observe: Observe) -> None:
    observed = observe(connect=refused, drain_interval=3600.0)
    samples = [sample for family in observed.registry.collect() for sample in family.samples]
    series = sum("gen_ai_agent_name" not in sample.labels for sample in samples)
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert f"| Pipeline | | | {series} |" in page.read_text()


def test_rejections_of_processor_and_sink_are_one_counter(observed: Observed) -> None:
    spool = observed.telemetry.spool
    sink = PostgresSink(spool, refused, Guard())
    sink.rejected["timestamp"] += 2
    sink.rejected["bad_row"] += 3
    registry = CollectorRegistry()
    registry.register(SpoolCollector(spool, sink, lambda: Counts.none()._replace(rejected=Counter(timestamp=1))))
    assert registry.get_sample_value("spanledger_rows_rejected_total", {"reason": "timestamp"}) == 3
    assert registry.get_sample_value("spanledger_rows_rejected_total", {"reason": "bad_row"}) == 3


def test_a_new_place_of_errors_is_counted_too(observed: Observed) -> None:
    from telemetry.monitor import _runtime

    assert _runtime is not None
    try:
        raise RuntimeError("odd")
    except RuntimeError:
        _runtime.guard.report("elsewhere")
    assert observed.errors() == {"elsewhere": 1}
