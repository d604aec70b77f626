"""The server that `bench.request` asks: `python -m bench.server plain|monitored`, prints its port, ends at SIGTERM.

Both are the same application on the same server; `monitored` has the server span of the service and one execution
for each request, spooled and counted.
"""

from __future__ import annotations

import gc
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from prometheus_client import CollectorRegistry

from app import tracing
from bench.call import IDS
from bench.payloads import messages
from telemetry import AgentMonitor, AlwaysRecord, configure

ANSWER = messages(1)[0]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Set up as `app.main` does."""
    async with AsyncExitStack() as stack:
        if app.state.monitored:
            provider = TracerProvider(sampler=AlwaysRecord(DEFAULT_ON))
            spool = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            telemetry = configure(spool_dir=spool, tracer_provider=provider, registry=CollectorRegistry())
            stack.callback(telemetry.shutdown)
            stack.enter_context(tracing.server_spans(app, provider))
        gc.collect()
        gc.freeze()
        yield


def create_app(monitored: bool) -> FastAPI:
    """The application: POST /run answers 1 KB to 1 KB, GET /healthz the process' CPU seconds so far."""
    app = FastAPI(
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.monitored = monitored
    monitor = AgentMonitor()

    @app.get("/healthz")  # one of the doors without a span
    async def cpu() -> float:
        return time.process_time()

    if monitored:

        @app.post("/run")
        async def monitored_run(body: Annotated[dict[str, Any], Body()]) -> dict[str, str]:
            with monitor.execution("flashcard_generation", version="1", input=body, **IDS) as run:
                run.output = ANSWER
                return ANSWER
    else:

        @app.post("/run")
        async def plain_run(body: Annotated[dict[str, Any], Body()]) -> dict[str, str]:
            return ANSWER

    return app


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        app = create_app(monitored=sys.argv[1] == "monitored")
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_level="error",
            timeout_keep_alive=60,  # the connection waits while the other server has its turn
        )
        uvicorn.Server(config).run([listener])
