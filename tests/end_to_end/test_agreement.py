"""200 executions of every kind and ending, and one set of numbers wherever one looks.

The plan says what has to come of it; spans, `/metrics`, a real Prometheus, the rows and the admin endpoint are each
compared with it and with one another.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from app.database import Database
from tests.app.service import TOKEN, Service
from tests.conftest import Server, reachable_directory
from tests.end_to_end import plan, sources
from tests.end_to_end.otlp import TraceBackend, trace_backend
from tests.end_to_end.plan import Ledger
from tests.end_to_end.prometheus import Prometheus, prometheus
from tests.end_to_end.sources import Book, Samples
from tests.end_to_end.waiting import drained
from tests.telemetry.observed import Observed, three_sums

OURS = '{__name__=~"(spanledger|gen_ai)_.+"}'
FAMILIES = ("spanledger_executions", "spanledger_requests", "spanledger_tokens", "spanledger_cost", "spanledger_un")
FAILED = ("failure", "timeout")


class Done(NamedTuple):
    """What is left of the workload to look at."""

    service: Service
    database: Database
    backend: TraceBackend
    prometheus: Prometheus
    before: Samples
    samples: Samples
    scraped: Samples
    scraped_at: float


@pytest.fixture(scope="module")
def done(embedded_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    with ExitStack() as stack:
        database = stack.enter_context(embedded_server.database())
        directory = stack.enter_context(reachable_directory())
        backend = stack.enter_context(trace_backend())
        service = stack.enter_context(
            Service(
                directory / "data",
                *("-m", "uvicorn", "tests.end_to_end.workload:app", "--log-level", "warning"),
                ADMIN_TOKEN=TOKEN,
                DATABASE_URL=database.url.render_as_string(hide_password=False),
                OTEL_EXPORTER_OTLP_ENDPOINT=backend.url,
                LOG_LEVEL="warning",
            )
        )
        target = service.url.removeprefix("http://")
        server = stack.enter_context(prometheus(tmp_path_factory.mktemp("prometheus"), target))
        service.ready()
        before = sources.of_prometheus(server.query(OURS, time=server.scraped_after(time.time())))
        answer = httpx.post(f"{service.url}/workload", timeout=60)
        assert answer.status_code == 200, answer.text
        drained(service)
        last = server.scraped_after(time.time())
        scraped = sources.of_prometheus(server.query(OURS, time=last))
        yield Done(service, database, backend, server, before, sources.scrape(service.url), scraped, last)


@pytest.fixture(scope="module")
def expected() -> Ledger:
    return plan.ledger(plan.make())


def assert_same_seconds(one: Book, other: Book) -> None:
    assert one.seconds == pytest.approx(other.seconds, rel=1e-9)


def test_the_plan_has_everything(expected: Ledger) -> None:
    """200 executions, every status there is so far in numbers, priced and unpriced tokens of every class."""
    nodes = [node for root in plan.make() for node in root.tree()]
    assert len(nodes) == expected.executions.total() == plan.EXECUTIONS
    statuses = {status for _, status in expected.executions}
    assert statuses == {"success", "failure", "timeout", "cancelled"}
    assert {kind for _, _, kind in expected.tokens} == set(sources.CLASSES)
    assert min(expected.cost.total(), expected.unpriced.total(), expected.first_chunks.total()) > 0


def test_spans(done: Done, expected: Ledger) -> None:
    """All but the cost: spans have no price list."""
    spans = sources.of_spans(done.backend.spans)
    planned = replace(expected, cost=Counter(), unpriced=Counter())
    assert sources.differences(spans.ledger, planned) == {}


def test_metrics_of_the_process(done: Done, expected: Ledger) -> None:
    metrics = sources.of_samples(done.samples)
    assert sources.differences(metrics.ledger, expected) == {}
    assert_same_seconds(metrics, sources.of_spans(done.backend.spans))


def test_prometheus(done: Done, expected: Ledger) -> None:
    """Its counts and, but for the pipeline's clocks, every single series it has of ours."""
    assert sources.differences(sources.of_samples(done.scraped).ledger, expected) == {}
    assert_same_seconds(sources.of_samples(done.scraped), sources.of_spans(done.backend.spans))

    def comparable(samples: Samples) -> Samples:
        return {key: value for key, value in samples.items() if key[0].startswith(("gen_ai", *FAMILIES))}

    ours = sources.as_prometheus_has_them(comparable(done.samples))
    assert len(ours) > 1000
    assert comparable(done.scraped) == ours


def test_promql(done: Done, expected: Ledger) -> None:
    """As a dashboard asks, also over ranges: a counter born at 1 would lose its first run."""
    for promql in ("sum by ({by}) ({name})", "sum by ({by}) (max_over_time({name}[5m]))"):
        query = promql.format(by="gen_ai_agent_name, status", name="spanledger_executions_total")
        counts = {
            (series["metric"]["gen_ai_agent_name"], series["metric"]["status"]): int(series["value"][1])
            for series in done.prometheus.query(query, time=done.scraped_at)
        }
        assert {key: count for key, count in counts.items() if count} == expected.executions
    for metric, family in (("executions", expected.executions), ("requests", expected.requests)):
        (series,) = done.prometheus.query(f"sum(spanledger_{metric}_total)", time=done.scraped_at)
        assert int(series["value"][1]) == family.total()


def test_closed_labels_are_at_zero_before_the_first_run(done: Done) -> None:
    known = {
        (dict(labels)["gen_ai_agent_name"], dict(labels)["status"]): value
        for (name, labels), value in done.before.items()
        if name == "spanledger_executions_total"
    }
    agents = ("main_orchestrator", "flashcard_generation", "quiz", "summary", "chat")
    statuses = ("success", "failure", "timeout", "cancelled", "crashed", "rejected")
    assert known == {(agent, status): 0.0 for agent in agents for status in statuses}


def test_rows(done: Done, expected: Ledger) -> None:
    stored_rows = sources.of_rows(done.database)
    assert sources.differences(stored_rows.ledger, expected) == {}
    assert_same_seconds(stored_rows, sources.of_spans(done.backend.spans))
    by_status = sources.of_spans(done.backend.spans).seconds_by_status
    assert stored_rows.seconds_by_status == pytest.approx(by_status, rel=1e-9)


def test_the_three_sums(done: Done, expected: Ledger) -> None:
    """Own over all executions = totals over requests = steps; and all of them what was planned."""
    own, total, steps = sources.three_sums(done.database)
    planned = expected.total("input", "output")
    assert (own.tokens, total.tokens, steps.tokens) == (planned, planned, planned)
    assert (own.cost, total.cost) == (steps.cost, steps.cost)
    assert round(steps.cost * 10**12) == expected.cost.total()
    for kind in sources.CLASSES:
        assert (getattr(own, kind), getattr(steps, kind)) == (expected.total(kind), expected.total(kind)), kind


def test_admin_endpoint(done: Done, expected: Ledger) -> None:
    found = sources.admin_metrics(done.service.url, TOKEN)
    seconds = sources.of_spans(done.backend.spans).seconds_by_status
    (requests,) = sources.rows(
        done.database,
        "SELECT sum(execution_time_ms) FROM agent_executions WHERE is_root AND status <> 'cancelled'",
    )
    successful = sum(count for (_, status), count in expected.requests.items() if status == "success")
    failed = sum(count for (_, status), count in expected.requests.items() if status in FAILED)
    cancelled = sum(count for (_, status), count in expected.requests.items() if status == "cancelled")
    agents = found.pop("agent_metrics")
    assert round(found.pop("cost_usd") * 10**12) == expected.cost.total()
    assert float(found.pop("avg_execution_time_ms")) == pytest.approx(requests[0] / (successful + failed), rel=1e-9)
    assert float(found.pop("success_rate")) == pytest.approx(successful / (successful + failed), rel=1e-12)
    assert found == {
        "total_requests": successful + failed,
        "successful": successful,
        "failed": failed,
        "cancelled": cancelled,
        "rejected": 0,
        "total_tokens_used": expected.total("input", "output"),
        "cost_complete": False,
    }
    assert set(agents) == {agent for agent, _ in expected.executions}
    for agent, numbers in agents.items():
        count = {status: expected.executions[agent, status] for status in ("success", *FAILED, "cancelled")}
        counted = count["success"] + count["failure"] + count["timeout"]
        assert (numbers["count"], numbers["cancelled"], numbers["rejected"]) == (counted, count["cancelled"], 0)
        took = sum(seconds.get((agent, status), 0.0) for status in ("success", *FAILED))
        if counted:
            assert float(numbers["success_rate"]) == pytest.approx(count["success"] / counted)
            assert float(numbers["avg_time_ms"]) * counted == pytest.approx(took * 1e3, rel=1e-9)
        own = sum(n for (name, _, kind), n in expected.tokens.items() if name == agent and kind in ("input", "output"))
        assert numbers["own_tokens"] == own, agent
        assert numbers["total_tokens"] == total_tokens(agent), agent
        cost = sum(pico for (name, _), pico in expected.cost.items() if name == agent)
        assert round((numbers["cost_usd"] or 0) * 10**12) == cost, agent


def total_tokens(agent: str) -> int:
    """Of an agent's executions with all below them."""
    return sum(
        call.input + call.output
        for root in plan.make()
        for node in root.tree()
        if node.agent == agent
        for below in node.tree()
        for call in below.calls
    )


def test_exemplars_lead_to_rows(done: Done) -> None:
    """In Prometheus, on counters and histograms: each names a row of the agent and status it is on."""
    runs = {
        (row.trace_id, row.span_id): (row.agent_name, row.status)
        for row in sources.rows(done.database, "SELECT trace_id, span_id, agent_name, status FROM agent_executions")
    }
    steps = {
        (row.trace_id, row.span_id): row.agent_name or plan.UNATTRIBUTED
        for row in sources.rows(done.database, "SELECT trace_id, span_id, agent_name FROM execution_steps")
    }

    def exemplars(name: str) -> list[tuple[dict[str, str], tuple[str, str]]]:
        series = done.prometheus.exemplars(name)
        ids: list[tuple[dict[str, str], Any]] = [
            (one["seriesLabels"], (exemplar["labels"]["trace_id"], exemplar["labels"]["span_id"]))
            for one in series
            for exemplar in one["exemplars"]
        ]
        assert ids, name
        return ids

    for name in ("spanledger_executions_total", "spanledger_requests_total"):
        for labels, ids in exemplars(name):
            assert runs[ids] == (labels["gen_ai_agent_name"], labels["status"])
    for labels, ids in exemplars("gen_ai_invoke_agent_duration_seconds_bucket"):
        assert runs[ids][0] == labels["gen_ai_agent_name"]
    for name in (
        "spanledger_tokens_total",
        "spanledger_cost_usd_total",
        "gen_ai_client_operation_duration_seconds_bucket",
        "gen_ai_client_token_usage_bucket",
        "gen_ai_execute_tool_duration_seconds_bucket",
    ):
        for labels, ids in exemplars(name):
            assert steps[ids] == labels["gen_ai_agent_name"]


def test_nothing_is_left_open_lost_or_set_aside(done: Done) -> None:
    (executions,) = sources.rows(done.database, "SELECT count(*) FROM agent_executions")
    (steps,) = sources.rows(done.database, "SELECT count(*) FROM execution_steps")
    assert executions[0] == plan.EXECUTIONS
    stored_counts = {
        dict(labels)["table"]: value
        for (name, labels), value in done.samples.items()
        if name == "spanledger_sink_rows_stored_total"
    }
    assert stored_counts == {"executions": executions[0], "steps": steps[0]}
    zero = (
        *("spanledger_executions_in_flight", "spanledger_errors_total", "spanledger_rows_dropped_total"),
        *("spanledger_rows_rejected_total", "spanledger_label_overflow_total", "spanledger_sink_failures_total"),
        *("spanledger_sink_rows_duplicate_total", "spanledger_open_spans_evicted_total"),
        *("spanledger_spool_torn_lines_total", "spanledger_spool_bytes"),
    )
    wrong = {key: value for key, value in done.samples.items() if key[0] in zero and value}
    assert wrong == {}
    assert {key[0] for key in done.samples} >= set(zero)


@pytest.mark.parametrize("named_at_start", [True, False])
def test_a_call_outside_any_agent_is_an_execution(named_at_start: bool, tmp_path: Path) -> None:
    """Also where the instrumentation says only after the start what the span is, as many do."""
    observed = Observed(tmp_path / "spool")
    usage: dict[str, str | int] = {"gen_ai.usage.input_tokens": 90, "gen_ai.usage.output_tokens": 10}
    name: dict[str, str | int] = {"gen_ai.operation.name": "chat"}
    with observed.tracer.start_as_current_span("chat", attributes=name if named_at_start else None) as span:
        span.set_attributes(name | usage)
    observed.telemetry.shutdown()
    assert [tokens for tokens, _ in three_sums(observed)] == [100, 100, 100]
