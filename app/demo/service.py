"""The running service as the demo's client sees it: agents, metrics, stored rows."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import httpx

from app.demo.plan import USERS, Ask, user_id
from app.settings import Settings, StartError

TOTAL = re.compile(r'^spanledger_requests_total\{.*status="(\w+)".*\} (\S+)', re.MULTILINE)
PAGE = 500


class ServiceClient:
    """Speaks to the service of `settings`, or to the one at `url`.

    Raises:
        StartError: No admin token can be read.
    """

    def __init__(self, settings: Settings, url: str | None = None) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = url or f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{settings.port}"
        self.token_file: Path = settings.spanledger_data_dir / "admin-token"
        tokens = settings.admin_tokens()
        try:
            token = tokens[0] if tokens else self.token_file.read_text().strip()
        except OSError as error:
            raise StartError(
                f"{self.token_file} cannot be read ({error.strerror}): start the service with `make run`, "
                "or give its ADMIN_TOKEN or SPANLEDGER_DATA_DIR here as well"
            ) from None
        self._admin = {"Authorization": f"Bearer {token}"}
        bearer = settings.api_token
        headers = {"Authorization": f"Bearer {bearer.get_secret_value()}"} if bearer else {}
        self.http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    async def reachable(self) -> None:
        """Raises StartError where nobody answers."""
        try:
            (await self.http.get("/healthz")).raise_for_status()
        except httpx.HTTPError as error:
            reason = f"no service at {self.url} ({error}): start it in another terminal with `make run`"
            raise StartError(reason) from None

    async def ask(self, ask: Ask) -> None:
        """Run an agent and read its events; leave after the first where the run is to be cancelled."""
        try:
            async with self.http.stream("POST", "/api/ai/process-stream", json=ask.body) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    raise StartError(f"{self.url} answered {answer.status_code}: {answer.text}")
                async for line in answer.aiter_lines():
                    if ask.status == "cancelled" and line.startswith("data:"):
                        return
        except httpx.HTTPError as error:
            raise StartError(f"{self.url} went away during the demo: {type(error).__name__} {error}") from None

    async def counted(self) -> Counter[str]:
        """Requests by status, as `/metrics` has them."""
        text = (await self.http.get("/metrics")).raise_for_status().text
        found: Counter[str] = Counter()
        for status, value in TOTAL.findall(text):
            found[status] += int(float(value))
        return found

    async def stored(self, run_id: str) -> Counter[str]:
        """Requests of this run by status, as the admin API has them."""
        found: Counter[str] = Counter()
        for number in range(USERS):
            cursor: str | None = ""
            while cursor is not None:
                query = {"user_id": user_id(run_id, number), "limit": str(PAGE)} | (
                    {"cursor": cursor} if cursor else {}
                )
                answer = await self.http.get("/api/admin/executions", params=query, headers=self._admin)
                if answer.status_code != 200:
                    raise StartError(f"the admin API answered {answer.status_code}: {answer.text}")
                page = answer.json()
                found.update(row["status"] for row in page["data"] if row["is_root"])
                cursor = page["next_cursor"]
        return found
