"""Listens on the ports among its arguments, answers 200 to everything and prints each POST as [path, body]."""

from __future__ import annotations

import json
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode(errors="replace")
        sys.stdout.write(json.dumps([self.path, body]) + "\n")
        sys.stdout.flush()
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def listen(ports: list[int]) -> None:
    """Until SIGTERM, which the first process of a container has to ask for."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for port in ports:
        server = ThreadingHTTPServer(("", port), Handler)  # only the networks of its container reach it
        threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    listen([int(argument) for argument in sys.argv[1:] if argument.isdigit()])
