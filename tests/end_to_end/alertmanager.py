"""A real Alertmanager and a webhook that keeps what it is told."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.app.service import free_port
from tests.components import component


class Webhook:
    """Receives notifications at `url`."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        alerts = self.alerts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                alerts.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def firing(self, name: str, seconds: float = 60, **labels: str) -> dict[str, Any]:
        """Wait for the alert `name` with these labels; the agents above a failing one fail with it."""
        wanted = {"alertname": name, **labels}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for alert in list(self.alerts):
                if wanted.items() <= alert["labels"].items() and alert["status"] == "firing":
                    return alert
            time.sleep(0.1)
        raise AssertionError(f"no {name} within {seconds} s: {self.alerts}")


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A webhook that answers until the block ends."""
    receiver = Webhook()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


@contextmanager
def alertmanager(config: Path, directory: Path) -> Iterator[str]:
    """Its address (host:port)."""
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(component("alertmanager")),
        f"--config.file={config}",
        f"--storage.path={directory / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    log_file = directory / "alertmanager.log"
    with log_file.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            yield address
        finally:
            server.terminate()
            server.wait(30)
