"""OpenTelemetry as the settings want it: resource, sampler, exporter, and the one server span per request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import TracerProvider

from app.settings import Settings

# Read once, when the first instrumentation is set up: the stable names instead of `http.method` and its kind.
os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,gen_ai_latest_experimental")

UNTRACED = r"^\w+://[^/]+/(?:metrics|healthz|readyz|v1/traces)$"
"""Hot doors without a server span, as the instrumentation takes them: a regex over the whole URL."""


def resource(settings: Settings) -> Resource:
    """Who sends the spans."""
    return Resource.create({**settings.otel_resource_attributes, "service.name": settings.otel_service_name})


def sampler(settings: Settings) -> Sampler:
    """Which traces are exported. Source: OpenTelemetry specification, OTEL_TRACES_SAMPLER."""
    name = settings.otel_traces_sampler
    roots: dict[str, Sampler] = {
        "always_on": ALWAYS_ON,
        "always_off": ALWAYS_OFF,
        "traceidratio": TraceIdRatioBased(settings.otel_traces_sampler_arg),
    }
    root = roots[name.removeprefix("parentbased_")]
    return ParentBased(root) if name.startswith("parentbased_") else root


def exporter(settings: Settings) -> SpanExporter | None:
    """The trace backend's exporter, imported only when there is one: it brings requests along."""
    if settings.otel_exporter_otlp_endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    endpoint = settings.otel_exporter_otlp_endpoint.rstrip("/") + "/v1/traces"
    return OTLPSpanExporter(endpoint, headers=settings.otlp_headers() or None)


@contextmanager
def server_spans(app: FastAPI, provider: TracerProvider) -> Iterator[None]:
    """Trace every request of a started application with one span, streams included.

    The provider exists only once the lifespan runs, and the middleware stack is built by then: it is built a
    second time, for the requests. No span per received or sent message: a stream would have one per chunk.
    """
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),
        excluded_urls=UNTRACED,
        exclude_spans=["receive", "send"],
    )
    app.middleware_stack = app.build_middleware_stack()
    try:
        yield
    finally:
        FastAPIInstrumentor.uninstrument_app(app)
