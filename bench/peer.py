"""One side of `bench.peers`, in an environment of its own: `python bench/peer.py NAME DIRECTORY`.

For each line on stdin it makes a round of calls and prints the microseconds of one. It imports nothing but the library
that NAME says.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = 300
WORDS = "the well known spans of a run and what it cost to have them "
GIVEN = {"message": (WORDS * 20)[:1000], "id": "5f2a9c1e7b3d4f60"}
ANSWER = {"message": (WORDS * 20)[60:1060], "id": "9b1d3f5a7c2e4680"}
Agent = Callable[[dict[str, str]], dict[str, str]]


def run(given: dict[str, str]) -> dict[str, str]:
    """The agent: it has its answer at hand."""
    return ANSWER


def spanledger(directory: Path) -> Agent:
    """Stored on disk, counted for Prometheus."""
    from telemetry import AgentMonitor, configure

    configure(spool_dir=directory / "spool")
    return AgentMonitor().agent("run")(run)


def langfuse(directory: Path) -> Agent:
    """With an exporter that takes spans and does nothing."""
    from langfuse import Langfuse, observe  # type: ignore[import-not-found]  # in its own environment only
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class NoExporter(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            assert all(isinstance(span, ReadableSpan) for span in spans)
            return SpanExportResult.SUCCESS

    Langfuse(public_key="pk", secret_key="sk", host="http://127.0.0.1:1", span_exporter=NoExporter())
    decorated: Agent = observe()(run)
    return decorated


def mlflow(directory: Path) -> Agent:
    """With its own store, a SQLite file, written by its own thread."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{directory}/mlflow.db"
    os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "true"
    import mlflow  # type: ignore[import-not-found]  # in its own environment only

    decorated: Agent = mlflow.trace(run)
    return decorated


def main(name: str, directory: Path) -> None:
    """Answer rounds until stdin ends."""
    logging.disable(logging.WARNING)
    agent = {"spanledger": spanledger, "langfuse": langfuse, "mlflow": mlflow}[name](directory)
    for _ in sys.stdin:
        begin = time.perf_counter()
        for _ in range(CALLS):
            agent(GIVEN)
        print((time.perf_counter() - begin) / CALLS * 1e6, flush=True)
    os._exit(0)  # what the library would still send or store is not measured


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
