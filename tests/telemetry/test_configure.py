from __future__ import annotations

import logging
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_ON,
    AlwaysRecordSampler,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client import CollectorRegistry

from telemetry import configure, current_run
from telemetry.sampling import AlwaysRecord
from tests.telemetry.conftest import Observe
from tests.telemetry.observed import Observed

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "p", "gen_ai.request.model": "m"}
ROOT = Path(__file__).resolve().parents[2]


def one_request(observed: Observed) -> None:
    with observed.monitor.execution("outer") as outer:
        outer.record_usage(provider="p", model="m", input_tokens=5)
        with observed.monitor.execution("inner"):
            pass


def counted_and_stored(observed: Observed) -> bool:
    rows = {row["agent_name"]: (row["status"], row["tokens_total"], row["is_root"]) for row in observed.executions}
    assert rows == {"outer": ("success", "5", "t"), "inner": ("success", "0", "f")}
    assert [step["agent_span_id"] for step in observed.steps] == [observed.execution("outer")["span_id"]]
    for agent in ("outer", "inner"):
        assert observed.value("spanledger_executions_total", gen_ai_agent_name=agent, status="success") == 1
        assert observed.value("spanledger_executions_in_flight", gen_ai_agent_name=agent) == 0
    return observed.errors() == {}


# Beside a host


def test_the_hosts_provider_and_registry_are_kept(observed: Observed) -> None:
    assert observed.telemetry.tracer_provider is observed.provider
    assert observed.telemetry.registry is observed.registry
    assert observed.telemetry.instance_id == "i-1"
    assert not isinstance(trace.get_tracer_provider(), TracerProvider)  # nothing was made global


@pytest.mark.parametrize(
    "sampler",
    [
        ALWAYS_OFF,
        TraceIdRatioBased(0),
        ParentBased(TraceIdRatioBased(0)),
        AlwaysRecordSampler(ALWAYS_OFF),  # which loses the attributes a span is started with
        AlwaysRecord(ALWAYS_OFF),
    ],
)
def test_what_the_host_does_not_sample_is_counted_and_stored_and_not_exported(
    observe: Observe, sampler: Sampler
) -> None:
    observed = observe(sampler=sampler)
    one_request(observed)
    assert counted_and_stored(observed)
    assert observed.spans == {}


@pytest.mark.parametrize("sampler", [DEFAULT_ON, ParentBased(TraceIdRatioBased(1))])
def test_an_unsampled_remote_parent_silences_nothing(observe: Observe, sampler: Sampler) -> None:
    observed = observe(sampler=sampler)
    remote = NonRecordingSpan(SpanContext(0xABC, 0xDEF, True, TraceFlags(0)))
    with trace.use_span(remote):
        one_request(observed)
    assert counted_and_stored(observed)
    row = observed.execution("outer")
    assert (row["trace_id"], row["parent_span_id"], row["parent_agent_span_id"]) == (
        f"{0xABC:032x}",
        f"{0xDEF:016x}",
        None,
    )
    assert observed.spans == {}


def test_unsampled_runs_have_ids_of_the_hosts_generator_and_are_current(observe: Observe) -> None:
    observed = observe(sampler=ALWAYS_OFF)
    with observed.monitor.execution("a", user_id="u") as run:
        assert current_run() is run
    assert int(run.span_id, 16) < 100  # the host counts its ids
    assert observed.execution("a")["instance_id"] == "i-1"


@pytest.mark.parametrize(
    ("sampler", "warned"),
    [
        (ALWAYS_ON, False),
        (AlwaysRecord(ALWAYS_OFF), False),
        (AlwaysRecordSampler(ALWAYS_ON), True),
        (ALWAYS_OFF, True),
        (DEFAULT_ON, True),
        (TraceIdRatioBased(0.5), True),
    ],
)
def test_a_host_sampler_that_may_drop_foreign_spans_is_warned_of(
    observe: Observe, caplog: pytest.LogCaptureFixture, sampler: Sampler, warned: bool
) -> None:
    with caplog.at_level(logging.WARNING, "spanledger"):
        observe(sampler=sampler)
    assert ["wrap it in" in record.getMessage() for record in caplog.records] == [True] * warned


# On its own

_OWN = """
import sys
from pathlib import Path
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client import REGISTRY
from telemetry import AgentMonitor, configure

exporter = InMemorySpanExporter()
telemetry = configure(spool_dir=Path(sys.argv[1]), span_exporter=exporter, sampler=ParentBased(ALWAYS_ON))
assert trace.get_tracer_provider() is telemetry.tracer_provider
assert telemetry.registry is REGISTRY
assert len(telemetry.instance_id) == 36
for sampled in (0, 1):
    with trace.use_span(NonRecordingSpan(SpanContext(7, 8, True, TraceFlags(sampled)))):
        with AgentMonitor().execution("a"), trace.get_tracer("foreign").start_as_current_span(
            f"chat {sampled}", attributes={"gen_ai.operation.name": "chat"}
        ) as call:
            call.set_attribute("gen_ai.usage.input_tokens", 5)
assert telemetry.flush()
lines = [line for segment in telemetry.spool.ready() for line in segment.read("executions").splitlines()]
assert len(lines) == 2, lines
steps = [line for segment in telemetry.spool.ready() for line in segment.read("steps").splitlines()]
assert len(steps) == 2, steps
labels = {"service_name": "unknown_service", "deployment_environment_name": ""}
count = REGISTRY.get_sample_value(
    "spanledger_executions_total", {**labels, "gen_ai_agent_name": "a", "status": "success"}
)
assert telemetry.shutdown()
names = sorted(span.name for span in exporter.get_finished_spans())
assert (names, count) == (["chat 1", "invoke_agent a"], 2), (names, count)
assert not {"psycopg", "genai_prices", "grpc", "openai"} & sys.modules.keys()
"""


def test_its_own_provider_counts_all_and_exports_what_is_sampled(tmp_path: Path) -> None:
    """In a process of its own: the provider is global."""
    script = textwrap.dedent(_OWN)
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "spool")]
    environment = {"PYTHONPATH": str(ROOT), "OTEL_SERVICE_NAME": "unknown_service"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert (result.returncode, result.stderr) == (0, "")


# Its end


def test_after_shutdown_monitors_pass_through(observed: Observed) -> None:
    assert observed.telemetry.shutdown()
    with observed.monitor.execution("a") as run:
        run.output = 1
    assert run.span_id == "0" * 16


def test_a_run_that_ends_after_shutdown_is_counted_as_dropped(observed: Observed) -> None:
    with observed.monitor.execution("a"):
        observed.telemetry.shutdown()
    assert observed.pipeline("spanledger_rows_dropped_total", reason="spool_closed") == 1


def test_flush_without_a_sink_seals(observed: Observed) -> None:
    with observed.monitor.execution("a"):
        pass
    assert observed.telemetry.flush()
    (segment,) = observed.telemetry.spool.ready()
    assert len(segment.read("executions").splitlines()) == 1


def test_a_trace_backend_that_hangs_does_not_keep_rows_from_the_disk(observed: Observed) -> None:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    order: list[str] = []

    class Slow(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            time.sleep(0.2)
            order.append(f"exported, {observed.telemetry.spool.pending_bytes() and 'spool sealed'}")
            return SpanExportResult.SUCCESS

    observed.provider.add_span_processor(BatchSpanProcessor(Slow()))
    with observed.monitor.execution("a"):
        pass
    observed.telemetry.shutdown(timeout=0.1)
    sealed = list(observed.telemetry.spool.directory.glob("*/*.executions"))
    assert (order, len(sealed)) == (["exported, spool sealed"], 1)
    observed.provider.shutdown()


# What is wrong


def test_a_pattern_that_is_no_regex_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(re.error):
        configure(spool_dir=tmp_path / "spool", redact=["("], registry=CollectorRegistry())
    assert not (tmp_path / "spool").exists()


def test_a_spool_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        configure(spool_dir=tmp_path / "file" / "spool", registry=CollectorRegistry())


def test_foreign_calls_are_counted_on_the_hosts_provider(observed: Observed) -> None:
    with observed.tracer.start_as_current_span("chat", attributes=CHAT) as span:
        span.set_attribute("gen_ai.usage.output_tokens", 4)
    labels = {"gen_ai_agent_name": "_unattributed", "gen_ai_request_model": "m", "gen_ai_token_type": "output"}
    assert observed.value("spanledger_tokens_total", **labels) == 4
    assert observed.value("spanledger_requests_total", gen_ai_agent_name="_unattributed", status="success") == 1


def test_foreign_calls_that_are_not_sampled_keep_their_attributes(observe: Observe) -> None:
    observed = observe(sampler=AlwaysRecord(ALWAYS_OFF))
    with observed.tracer.start_as_current_span("chat", attributes=CHAT) as span:
        span.set_attribute("gen_ai.usage.output_tokens", 4)
    assert [step["request_model"] for step in observed.steps] == ["m"]
    assert observed.spans == {}
