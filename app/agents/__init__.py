"""The agents of the service: `main_orchestrator` answers a request by events, an engine does the thinking."""

from __future__ import annotations

from .engine import Engine, open_engine
from .errors import AgentError
from .event import Emit, Error, Event, Partial, Progress, Result
from .main_orchestrator import main_orchestrator
from .request import AGENTS, AgentRequest, Options

__all__ = [
    "AGENTS",
    "AgentError",
    "AgentRequest",
    "Emit",
    "Engine",
    "Error",
    "Event",
    "Options",
    "Partial",
    "Progress",
    "Result",
    "main_orchestrator",
    "open_engine",
]
