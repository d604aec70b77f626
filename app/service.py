"""What every server of ours is, whatever it serves: the door, and a start that fails with one line."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from fastapi import FastAPI
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from app.middleware import AdminTokenMiddleware, RequestIdMiddleware
from app.settings import Settings, StartError

DRAIN_SECONDS = 5.0
"""Deadline at shutdown for requests that are cut off to end, and again for the spool to reach Postgres."""

logger = logging.getLogger(__name__)


class Service(FastAPI):
    """The application behind the door: token out of the URL, request id in, start errors as one line."""

    def __init__(self, settings: Settings, lifespan: Callable[[Any], AbstractAsyncContextManager[None]]) -> None:
        super().__init__(
            title="Spanledger",
            description="Observability for AI agents: spans, metrics and rows that agree.",
            lifespan=lifespan,
            # FastAPI's own spans would be four more a request, beside the one of the instrumentation.
            telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
        )
        self.state.settings = settings
        self.state.migrated = False
        self.state.supervisor = None  # the socket of one, where this is a worker
        self.in_flight = 0
        self._door = AdminTokenMiddleware(RequestIdMiddleware(super().__call__))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, _start_errors_as_a_line(send))
            return
        self.in_flight += 1
        try:
            await self._door(scope, receive, send)
        except asyncio.CancelledError:  # by an admin, or by the server at the end of its patience
            logger.warning("cut off: %s", scope["path"])
        except Exception:
            if not scope.get("spanledger.logged"):  # by `problems`: once is enough
                raise
        finally:
            self.in_flight -= 1

    async def drained(self) -> None:
        """Wait a while until the last request has ended: the server has cancelled those left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while self.in_flight:
                    await asyncio.sleep(0.01)


def python_registry() -> CollectorRegistry:
    """A registry of its own with what Python's client tells of the process."""
    registry = CollectorRegistry()
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(collector)
    return registry


def _start_errors_as_a_line(send: Send) -> Send:
    async def send_line(message: Message) -> None:
        error = sys.exc_info()[1]
        if message["type"] == "lifespan.startup.failed" and isinstance(error, StartError):
            sys.stderr.write(f"spanledger: {error}\n")
            logging.getLogger("uvicorn.error").disabled = True  # it would add that the start failed
            message = {**message, "message": ""}
        await send(message)

    return send_line
