"""Spanledger: every agent execution becomes one span, one set of Prometheus observations and one row in Postgres.

from spanledger import AgentMonitor, configure

configure(spool_dir=Path("/var/lib/agent/spool"))
monitor = AgentMonitor()

@monitor.agent("summary")
async def summarise(text: str) -> str: ...
"""

from __future__ import annotations

from .caller import bind
from .configure import Telemetry, configure
from .content import Content
from .drain import Drain
from .inflight import cancel_run, open_runs
from .ledger import Ledger
from .monitor import AgentMonitor, Inference, Run, Tool, current_run
from .prices import Prices
from .rejected import Rejected
from .sampling import AlwaysRecord
from .semconv import Status
from .settle import settle
from .slots import OpenRun

__all__ = [
    "AgentMonitor",
    "AlwaysRecord",
    "Content",
    "Drain",
    "Inference",
    "Ledger",
    "OpenRun",
    "Prices",
    "Rejected",
    "Run",
    "Status",
    "Telemetry",
    "Tool",
    "bind",
    "cancel_run",
    "configure",
    "current_run",
    "open_runs",
    "settle",
]
