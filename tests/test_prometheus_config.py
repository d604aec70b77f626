"""prometheus/prometheus.yml, read by the real promtool and the real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, start_http_server

from tests.components import component

CONFIG = Path(__file__).resolve().parents[1] / "prometheus" / "prometheus.yml"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def test_promtool_accepts_the_configuration() -> None:
    checked = subprocess.run(
        [component("promtool"), "check", "config", "--lint=all", "--lint-fatal", CONFIG],
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.fixture
def target() -> Iterator[str]:
    """A scrape target with one counter and one exemplar, where the configuration has the service."""
    registry = CollectorRegistry()
    Counter("spanledger_executions", "Runs.", registry=registry).inc(exemplar={"trace_id": TRACE_ID})
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def prometheus(target: str, tmp_path: Path) -> Iterator[str]:
    config = tmp_path / "prometheus" / "prometheus.yml"
    shutil.copytree(CONFIG.parent, config.parent)
    targets = config.parent / "targets" / "spanledger.yml"
    text, replaced = re.subn(r"127\.0\.0\.1:8000", target, targets.read_text())
    assert replaced == 1
    targets.write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                component("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
    yield f"http://{address}/api/v1"
    server.terminate()
    server.wait(timeout=30)


def eventually(url: str, seconds: float = 60) -> list[Any]:
    """The data of a Prometheus query as soon as there is any."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                body = json.load(response)["data"]
        except OSError:  # still starting
            body = []
        found = body["result"] if isinstance(body, dict) else body
        if found:
            return list(found)
        time.sleep(0.1)
    pytest.fail(f"no data at {url} within {seconds} s")


def test_prometheus_scrapes_the_service_with_exemplars(prometheus: str, target: str) -> None:
    (sample,) = eventually(f"{prometheus}/query?query=spanledger_executions_total")
    labels = {"instance": target, "job": "spanledger"}
    assert sample["metric"] == {"__name__": "spanledger_executions_total", **labels}
    assert sample["value"][1] == "1"

    (series,) = eventually(
        f"{prometheus}/query_exemplars?query=spanledger_executions_total&start=0&end={time.time() + 60:.0f}"
    )
    assert [exemplar["labels"] for exemplar in series["exemplars"]] == [{"trace_id": TRACE_ID}]
