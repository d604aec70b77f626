"""The alert of a broken agent, watched in Prometheus until it fires, and its runbook."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
NAME = "SpanledgerAgentFailing"
DEFAULT_PROMETHEUS = "http://127.0.0.1:9090"
WAIT_SECONDS = 180.0


class AlertWatch:
    """`pending` and `firing` are seconds after the start, once seen; `reachable` is whether Prometheus answered."""

    def __init__(self, prometheus_url: str, agent: str) -> None:
        self._url = f"{prometheus_url.rstrip('/')}/api/v1/alerts"
        self._agent = agent
        self._began = time.monotonic()
        self.reachable = False
        self.pending: float | None = None
        self.firing: float | None = None
        self.annotations: dict[str, str] = {}

    async def look(self) -> None:
        """One look at Prometheus."""
        try:
            async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
                answer = (await http.get(self._url)).raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return
        self.reachable = True
        seconds = time.monotonic() - self._began
        for alert in answer["data"]["alerts"]:
            if self._is_ours(alert["labels"]):
                self.annotations = alert["annotations"]
                self.pending = seconds if self.pending is None else self.pending
                if alert["state"] == "firing":
                    self.firing = seconds

    async def until_firing(self) -> None:
        """Look each second until it fires or the time is over; at once where nobody answers."""
        while self.firing is None and time.monotonic() - self._began < WAIT_SECONDS:
            await self.look()
            if not self.reachable:
                return
            await asyncio.sleep(1)

    def _is_ours(self, labels: dict[str, Any]) -> bool:
        return labels["alertname"] == NAME and labels.get("gen_ai_agent_name") == self._agent


def runbook() -> str:
    """What to do about it."""
    return (ROOT / "prometheus" / "runbooks" / f"{NAME}.md").read_text()
