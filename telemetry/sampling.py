"""AlwaysRecord: sampling decides what a trace backend gets, never what is counted and stored.

Source: OpenTelemetry specification, Trace SDK, "AlwaysRecord". The SDK's own `AlwaysRecordSampler` (1.45) hands on
what the root sampler answered, and a dropping one answers without attributes: the span is recorded, but bare of those
it was started with, so that nobody can tell a model call from any other span.
"""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes


class AlwaysRecord(Sampler):
    """Records what `root` would drop, attributes included; what it samples stays sampled."""

    def __init__(self, root: Sampler) -> None:
        self._root = root

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        # A root span under the default sampler: what three calls in the SDK would answer.
        if self._root is DEFAULT_ON and not get_current_span(parent_context).get_span_context().is_valid:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        result = self._root.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if result.decision is not Decision.DROP:
            return result
        return SamplingResult(Decision.RECORD_ONLY, result.attributes or attributes, result.trace_state)

    def get_description(self) -> str:
        return f"AlwaysRecord{{{self._root.get_description()}}}"
