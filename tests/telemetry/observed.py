"""A whole telemetry of a test's own: provider, registry and spool; what came out of it as spans, rows and samples."""

from __future__ import annotations

import itertools
from decimal import Decimal
from pathlib import Path
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import Tracer
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from telemetry import AgentMonitor, configure
from telemetry.execution import EXECUTION_COLUMNS, STEP_COLUMNS
from telemetry.spool import EXECUTIONS, STEPS

Row = dict[str, str | None]
RESOURCE = Resource(
    {
        "service.name": "tutor",
        "service.namespace": "school",
        "service.version": "1.2",
        "deployment.environment.name": "test",
        "service.instance.id": "i-1",
    }
)
SERVICE = {"service_name": "tutor", "deployment_environment_name": "test"}
_COLUMNS = {EXECUTIONS: EXECUTION_COLUMNS, STEPS: STEP_COLUMNS}
_UNESCAPED = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}


class Ids(IdGenerator):
    """1, 2, 3 …: span ids and trace ids that a test can write down."""

    def __init__(self) -> None:
        self._spans = itertools.count(1)
        self._traces = itertools.count(1)

    def generate_span_id(self) -> int:
        return next(self._spans)

    def generate_trace_id(self) -> int:
        return next(self._traces)


class Observed:
    """The seams: what goes in through `monitor` and `tracer`, what comes out as `spans`, rows and samples."""

    def __init__(self, spool_dir: Path, sampler: Sampler = ALWAYS_ON, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler, RESOURCE, shutdown_on_exit=False, id_generator=Ids())
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.registry = CollectorRegistry()
        self.telemetry = configure(
            spool_dir=spool_dir, tracer_provider=self.provider, registry=self.registry, **options
        )
        self.monitor = AgentMonitor()

    @property
    def tracer(self) -> Tracer:
        """Of an instrumented library that knows nothing of us."""
        return self.provider.get_tracer("foreign")

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """Exported spans by name."""
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def rows(self, table: str) -> list[Row]:
        """Every row of the spool so far, in the order of writing."""
        self.telemetry.spool.seal()
        lines = b"".join(segment.read(table) for segment in self.telemetry.spool.ready()).decode()
        return [dict(zip(_COLUMNS[table], map(_value, line.split("\t")), strict=True)) for line in lines.splitlines()]

    @property
    def executions(self) -> list[Row]:
        return self.rows(EXECUTIONS)

    @property
    def steps(self) -> list[Row]:
        return self.rows(STEPS)

    def execution(self, agent: str) -> Row:
        """The one row of this agent."""
        (row,) = (row for row in self.executions if row["agent_name"] == agent)
        return row

    def statuses(self) -> dict[str | None, str | None]:
        """Agent -> status."""
        return {row["agent_name"]: row["status"] for row in self.executions}

    def value(self, name: str, **labels: str) -> float | None:
        """A sample of an execution's or step's metric; the service's labels are added."""
        return self.registry.get_sample_value(name, SERVICE | labels)

    def pipeline(self, name: str, **labels: str) -> float | None:
        """A sample of the pipeline's own metrics."""
        return self.registry.get_sample_value(name, labels)

    def scrape(self) -> str:
        """What /metrics gives in the OpenMetrics format."""
        text: bytes = generate_latest(self.registry)  # type: ignore[no-untyped-call]  # the library leaves it untyped
        return text.decode()

    def samples(self, name: str = "") -> list[Sample]:
        """What a scrape gives for this name, or at all, as OpenMetrics' own parser reads it."""
        families = text_string_to_metric_families(self.scrape())  # type: ignore[no-untyped-call]  # likewise
        return [sample for family in families for sample in family.samples if name in ("", sample.name)]

    def errors(self) -> dict[str, float]:
        """Our own errors by place, without the zeros."""
        samples = self.samples("spanledger_errors_total")
        return {sample.labels["where"]: sample.value for sample in samples if sample.value}


def total(rows: list[Row], column: str) -> int:
    """The sum of a column of integers."""
    return sum(int(row[column] or 0) for row in rows)


def cost(rows: list[Row], column: str = "cost_usd") -> Decimal:
    """The sum of a column of costs."""
    return sum((Decimal(row[column] or 0) for row in rows), Decimal(0))


def three_sums(observed: Observed) -> tuple[tuple[int, Decimal], tuple[int, Decimal], tuple[int, Decimal]]:
    """Tokens and cost: own over executions, totals over roots, and over steps. They must be equal."""
    executions, steps = observed.executions, observed.steps
    roots = [row for row in executions if row["is_root"] == "t"]
    return (
        (total(executions, "tokens_used"), cost(executions)),
        (total(roots, "tokens_total"), cost(roots, "cost_total_usd")),
        (total(steps, "input_tokens") + total(steps, "output_tokens"), cost(steps)),
    )


def _value(field: str) -> str | None:
    if field == "\\N":
        return None
    pieces = field.split("\\\\")
    for escape, character in _UNESCAPED.items():
        if escape != "\\\\":
            pieces = [piece.replace(escape, character) for piece in pieces]
    return "\\".join(pieces)
