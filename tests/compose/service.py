"""The service behind its published port, as the seed document's user and administrator meet it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import httpx

from app.demo.plan import LONG
from tests.app.service import SEED
from tests.compose.stack import Stack
from tests.end_to_end import sources

FAILING = SEED | {"options": {"content": " "}}
TOO_SHORT = SEED | {"options": {"content": LONG, "timeout_seconds": 0.001}}
"""Its deadline passes in the middle of its work."""

Counts = Counter[tuple[str, str]]
"""By agent and status."""


class Service:
    """Found anew after each start: the engine chooses the port."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.url = stack.url("app", 8000)
        self.admin_token = stack.settings["ADMIN_TOKEN"]

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}{path}", timeout=30).raise_for_status().json()

    def to_strangers(self) -> list[int]:
        """What it answers to who has no token: to the user, to the administrator."""
        return [
            httpx.post(f"{self.url}/api/ai/process-stream", json=SEED).status_code,
            httpx.get(f"{self.url}/api/admin/metrics?hours=24").status_code,
        ]

    def ask(self, body: dict[str, Any] = SEED) -> tuple[str, dict[str, Any]]:
        """Run an agent: its last event."""
        headers = {"Authorization": f"Bearer {self.stack.settings['API_TOKEN']}"}
        answer = httpx.post(f"{self.url}/api/ai/process-stream", json=body, headers=headers, timeout=30)
        *_, name, data = answer.raise_for_status().text.split("\n\n")[-2].splitlines()
        return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    def administer(self, path: str) -> Any:
        """A request of the seed document, with the token where the document has it."""
        return self.get(f"/api/admin/{path}&admin_token={self.admin_token}")

    def counted(self) -> tuple[Counts, Counts]:
        """Executions and requests, as `/metrics` has them."""
        ledger = sources.of_samples(sources.scrape(self.url)).ledger
        return ledger.executions, ledger.requests

    def stored(self) -> tuple[Counts, Counts]:
        """The same, as psql in the container of Postgres has them."""
        executions, requests = Counts(), Counts()
        query = (
            "SELECT agent_name, status, count(*), count(*) FILTER (WHERE is_root) FROM agent_executions GROUP BY 1, 2"
        )
        psql = ("psql", "--username=spanledger", "--tuples-only", "--no-align", f"--command={query}")
        for line in self.stack.execute("postgres", *psql).splitlines():
            agent, status, all_, roots = line.split("|")
            executions[agent, status] += int(all_)
            requests[agent, status] += int(roots)
        return executions, +requests
