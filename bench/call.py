"""Cost of a monitored call, with and without an exporter.

Ours: one execution without steps, 1 KB in and 1 KB out (dicts of word text and an id), user, session and request id
given; encoding, redaction, caps, metrics with exemplars and the spool on disk included.
Baseline: `start_as_current_span` and 12 `set_attribute`, two of them strings of 1 KB made beforehand.
With an exporter both have a BatchSpanProcessor with its defaults and an exporter that does nothing. Without one the
baseline's provider has no processor, and ours has only the one that counts and stores.
One thread, both in turns in one process, gc.freeze() after the warm-up as in the service. There is no sink: the spool
is sealed and emptied between rounds. CPU is that of the process until the exporter has everything.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from prometheus_client import CollectorRegistry

from bench.figure import Figure, ratios
from bench.payloads import messages
from telemetry import AgentMonitor, AlwaysRecord, configure

CALLS = 1000  # a round; fewer than the exporter's queue holds, so neither side ever drops a span
ROUNDS = 41
IDS = {
    "user_id": "18717267-0855-433c-b160-04c3443daa80",
    "session_id": "8f14e45f-ceea-467f-9575-3f2b2a1f0c11",
    "request_id": "c9f0f895fb98ab9159f51fd0297e236d",
}
PAYLOADS = list(zip(messages(64)[:32], messages(64)[32:], strict=True))
TEXTS = [(orjson.dumps(given).decode(), orjson.dumps(answer).decode()) for given, answer in PAYLOADS]


class NoExporter(SpanExporter):
    """Takes spans and does nothing but count them."""

    def __init__(self) -> None:
        self.exported = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.exported += len(spans)
        return SpanExportResult.SUCCESS


class Variant:
    """One side of the comparison: `call` is what is measured, microseconds a call for each round."""

    def __init__(self, provider: TracerProvider, exporter: NoExporter | None, inputs: list[tuple[Any, Any]]) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.provider = provider
        self.exporter = exporter
        self.inputs = [inputs[number % len(inputs)] for number in range(CALLS)]
        self.batches = BatchSpanProcessor(exporter) if exporter is not None else None
        if self.batches is not None:
            provider.add_span_processor(self.batches)

    def round(self, call: Callable[[Any, Any], None]) -> None:
        """Measure one round."""
        cpu, wall = time.process_time(), time.perf_counter()
        for given, answer in self.inputs:
            call(given, answer)
        wall = time.perf_counter() - wall
        if self.batches is not None:
            self.batches.force_flush()
        cpu = time.process_time() - cpu
        self.wall.append(wall / CALLS * 1e6)
        self.cpu.append(cpu / CALLS * 1e6)
        if self.exporter is not None and self.exporter.exported != CALLS * len(self.wall):
            raise RuntimeError(f"{self.exporter.exported} spans of {CALLS * len(self.wall)} were exported")


def run() -> Iterator[Figure]:
    """Both comparisons."""
    yield from _compare(NoExporter(), NoExporter(), "with exporter")
    yield from _compare(None, None, "without exporter")


def _compare(bare: NoExporter | None, same: NoExporter | None, where: str) -> Iterator[Figure]:
    baseline = Variant(TracerProvider(), bare, TEXTS)
    ours = Variant(TracerProvider(sampler=AlwaysRecord(DEFAULT_ON)), same, PAYLOADS)
    tracer = baseline.provider.get_tracer("bench")
    monitor = AgentMonitor()

    def span(given: str, answer: str) -> None:
        with tracer.start_as_current_span("invoke_agent flashcard_generation") as span:
            span.set_attribute("gen_ai.operation.name", "invoke_agent")
            span.set_attribute("gen_ai.agent.name", "flashcard_generation")
            span.set_attribute("gen_ai.agent.version", "1")
            span.set_attribute("gen_ai.provider.name", "openai")
            span.set_attribute("gen_ai.request.model", "gpt-4o-mini")
            span.set_attribute("gen_ai.usage.input_tokens", 900)
            span.set_attribute("gen_ai.usage.output_tokens", 120)
            span.set_attribute("user.id", IDS["user_id"])
            span.set_attribute("session.id", IDS["session_id"])
            span.set_attribute("request.id", IDS["request_id"])
            span.set_attribute("gen_ai.input.messages", given)
            span.set_attribute("gen_ai.output.messages", answer)

    def execution(given: Any, answer: Any) -> None:
        with monitor.execution("flashcard_generation", version="1", input=given, **IDS) as run:
            run.output = answer

    with tempfile.TemporaryDirectory() as directory:
        telemetry = configure(spool_dir=Path(directory), tracer_provider=ours.provider, registry=CollectorRegistry())
        sides = [(baseline, span), (ours, execution)]
        for number in range(ROUNDS + 1):
            for variant, call in sides:
                variant.round(call)
            telemetry.spool.seal()
            for segment in telemetry.spool.ready():
                segment.remove()
            sides.reverse()
            if number == 0:  # the warm-up
                for variant, _ in sides:
                    del variant.wall[:], variant.cpu[:]
                    if variant.exporter is not None:
                        variant.exporter.exported = 0
                gc.collect()
                gc.freeze()
        telemetry.shutdown()
        ours.provider.shutdown()
        baseline.provider.shutdown()
        gc.unfreeze()
    yield Figure(f"{where}: ours / bare span, time", "×", ratios(ours.wall, baseline.wall), 2.0, 1.5)
    yield Figure(f"{where}: ours / bare span, CPU", "×", ratios(ours.cpu, baseline.cpu))
    for name, variant in (("bare span", baseline), ("ours", ours)):
        yield Figure(f"{where}: {name}, time", "µs", variant.wall)
        yield Figure(f"{where}: {name}, CPU", "µs", variant.cpu)
