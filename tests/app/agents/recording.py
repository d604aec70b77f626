"""What a test sees of the agents it ran: their events and their spans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from app.agents import AgentRequest, Engine, Event, main_orchestrator
from telemetry import Telemetry, configure


class Recording:
    """Telemetry of this test alone, and every span that has ended."""

    def __init__(self, telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
        self.telemetry = telemetry
        self._exporter = exporter

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        """Name and status of every span, in the order they ended."""
        return [(span.name, _status(span)) for span in self.spans]

    def attribute(self, span_name: str, attribute: str) -> object:
        """An attribute of the first span of that name."""
        span = next(span for span in self.spans if span.name == span_name)
        return (span.attributes or {}).get(attribute)


def _status(span: ReadableSpan) -> str:
    stated = (span.attributes or {}).get("spanledger.execution.status")
    return str(stated or ("failure" if span.status.status_code is StatusCode.ERROR else "success"))


@contextmanager
def recording(directory: Path) -> Iterator[Recording]:
    """Configure telemetry with a spool in `directory` for the block."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = configure(spool_dir=directory / "spool", tracer_provider=provider, registry=CollectorRegistry())
    try:
        yield Recording(telemetry, exporter)
    finally:
        telemetry.shutdown()


def ask(
    type: str, content: str = "", *, message: str = "What is it?", count: int = 3, difficulty: str = "medium"
) -> AgentRequest:
    """A request of user `ada` in session `s-1`."""
    options = {"content": content, "count": count, "difficulty": difficulty}
    return AgentRequest.model_validate(
        {"type": type, "user_id": "ada", "session_id": "s-1", "message": message, "options": options}
    )


async def events_of(request: AgentRequest, engine: Engine, timeout_seconds: float = 10.0) -> list[Event]:
    """Every event of one run, in order."""
    events: list[Event] = []

    async def emit(event: Event) -> None:
        events.append(event)

    await main_orchestrator(request, engine, emit, timeout_seconds=timeout_seconds)
    return events
