"""A trace backend: an OTLP/HTTP server that keeps the bytes it is sent, and the spans in them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

Value = str | int | float


class TraceBackend:
    """`url` is what OTEL_EXPORTER_OTLP_ENDPOINT takes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[bytes] = []

    @property
    def spans(self) -> list[Span]:
        """Every span so far, in the order of arrival."""
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        groups = [scope for request in requests for group in request.resource_spans for scope in group.scope_spans]
        return [span for group in groups for span in group.spans]


@contextmanager
def trace_backend() -> Iterator[TraceBackend]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            backend.bodies.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        backend = TraceBackend(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield backend
        finally:
            server.shutdown()
            thread.join()


def attributes(span: Span) -> dict[str, Value]:
    """The attributes that are one value."""
    found: dict[str, Value] = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        if kind in ("string_value", "int_value", "double_value"):
            found[item.key] = getattr(item.value, kind)
    return found
