"""The service as a process of its own, as `spanledger run` starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx

from app.settings import Settings

ROOT = Path(__file__).parents[2]
NO_DATABASE = "postgresql://127.0.0.1:1/nowhere"
TOKEN = "0123456789abcdefghijABCDEFGHIJxy"
RUN = ("-m", "app", "run")
UVICORN = ("-m", "uvicorn", "app.main:app")
SEED = {
    "type": "flashcard_generation",
    "user_id": "18717267-0855-433c-b160-04c3443daa80",
    "message": "Create flashcards about Python",
    "options": {"count": 3, "difficulty": "medium", "content": "Python is a programming language"},
}


class Service:
    """A service on `data_dir`; leaving the block kills what is left of it, its database server included.

    `variables` are its settings; it sees none of ours. It reads no `.env`, for it starts in another directory.
    """

    def __init__(self, data_dir: Path, *command: str, cwd: Path | None = None, **variables: str | None) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        fields = Settings.model_fields
        environment = {name: text for name, text in os.environ.items() if name.lower() not in fields}
        given = {"SPANLEDGER_DATA_DIR": str(data_dir), "PORT": str(self.port), "PYTHONPATH": str(cwd or ROOT)}
        environment |= {name: text for name, text in (given | variables).items() if text is not None}
        if command[:2] == UVICORN[:2]:
            command = (*command, "--port", str(self.port))
        self.process = subprocess.Popen(
            [sys.executable, *(command or RUN)],
            cwd=cwd or data_dir.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        if pid := self.database_pid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ready(self, status: str = "ok", seconds: float = 90) -> Self:
        """Wait until `/readyz` answers with `status`."""
        deadline = time.monotonic() + seconds
        answer: httpx.Response | None = None
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()
            with suppress(httpx.TransportError):
                answer = httpx.get(f"{self.url}/readyz", timeout=5)
                if answer.json()["status"] == status:
                    return self
            time.sleep(0.05)
        self.process.kill()
        raise AssertionError(f"not {status} within {seconds:.0f} s: {answer and answer.text}; {self.end()}")

    def ask(self, body: dict[str, Any] = SEED) -> dict[str, Any]:
        """Run an agent: the data of the last event of its stream."""
        answer = httpx.post(f"{self.url}/api/ai/process-stream", json=body, timeout=30).raise_for_status()
        events = [line.removeprefix("data:") for line in answer.text.splitlines() if line.startswith("data:")]
        result: dict[str, Any] = json.loads(events[-1])
        return result

    def executions(self) -> list[dict[str, Any]]:
        """The stored executions, newest first."""
        token = (self.data_dir / "admin-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.get(f"{self.url}/api/admin/executions", headers=headers, timeout=30).raise_for_status()
        data: list[dict[str, Any]] = answer.json()["data"]
        return data

    def stop(self, number: int = signal.SIGINT, seconds: float = 40) -> tuple[int, str, str]:
        """Send a signal and wait for the end: exit code, stdout, stderr."""
        self.process.send_signal(number)
        return self.end(seconds)

    def end(self, seconds: float = 60) -> tuple[int, str, str]:
        """Wait for the end: exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def database_pid(self) -> int | None:
        """The pid of its embedded Postgres, if that runs."""
        with suppress(FileNotFoundError):
            return int((self.data_dir / "postgres/data/postmaster.pid").read_text().split()[0])
        return None


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
