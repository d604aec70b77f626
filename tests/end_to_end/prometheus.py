"""A real Prometheus that scrapes one target."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.app.service import free_port
from tests.components import component

CONFIG = """\
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
  - job_name: spanledger
    static_configs: [{targets: ["%s"]}]
"""


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/api/v1"

    def answers(self) -> bool:
        """Whether it has started."""
        try:
            return httpx.get(f"{self.url}/status/buildinfo", timeout=10).is_success
        except httpx.HTTPError:
            return False

    def query(self, promql: str, **parameters: Any) -> list[dict[str, Any]]:
        """An instant query: its vector."""
        result: list[dict[str, Any]] = self._get("query", query=promql, **parameters)["result"]
        return result

    def exemplars(self, promql: str) -> list[dict[str, Any]]:
        """Series with their exemplars, of all times."""
        found: list[dict[str, Any]] = self._get("query_exemplars", query=promql, start=0, end=time.time() + 60)
        return found

    def rules(self) -> list[tuple[str, str]]:
        """Name and health of every rule it has loaded."""
        groups: list[dict[str, Any]] = self._get("rules")["groups"]
        return [(rule["name"], rule["health"]) for group in groups for rule in group["rules"]]

    def scraped_after(self, moment: float, seconds: float = 30) -> float:
        """Wait for a scrape that began after `moment`; when it began."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                # Of an expression, `timestamp` would give the time of the query: so no `== 1` inside.
                found = self.query('timestamp(up{job="spanledger"}) and up == 1')
            except httpx.HTTPError:  # still starting
                found = []
            if found and float(found[0]["value"][1]) > moment:
                return float(found[0]["value"][1])
            time.sleep(0.1)
        raise AssertionError(f"no scrape within {seconds} s: {self._get('targets')}")

    def _get(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/{path}", params=parameters, timeout=10)
        return json.loads(answer.raise_for_status().content)["data"]


@contextmanager
def prometheus(directory: Path, target: str) -> Iterator[Prometheus]:
    """Scrapes `target` (host:port) every second and keeps everything below `directory`."""
    address = f"127.0.0.1:{free_port()}"
    config = directory / "prometheus.yml"
    config.write_text(CONFIG % target)
    command = [
        str(component("prometheus")),
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address={address}",
        "--enable-feature=exemplar-storage",
    ]
    with (directory / "prometheus.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            yield Prometheus(f"http://{address}")
        finally:
            server.terminate()
            server.wait(30)
