"""Start and idle memory of the whole service: `python -m app run` on a data directory of its own, embedded Postgres.

The first start makes the database; then three starts on what is there. Time is from the start of the process until
`/readyz` answers. Memory is that of the service's process a second later: PSS, in which a page shared by n processes
counts as 1/n, and RSS. Postgres' processes are not in it and are shown beside.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from app.settings import Settings
from bench.figure import Figure

STARTS = 3
IDLE_SECONDS = 1.0
DEADLINE_SECONDS = 60.0
MEBIBYTE = 1 << 20
ROOT = Path(__file__).parents[1]


class Started:
    """What was seen of one start: seconds to ready, memory in bytes by what it is of."""

    def __init__(self, data_dir: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        settings = {"SPANLEDGER_DATA_DIR": str(data_dir), "PORT": str(self._port), "PYTHONPATH": str(ROOT)}
        inherited = {name: text for name, text in os.environ.items() if name.lower() not in Settings.model_fields}
        begin = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "app", "run"],
            cwd=data_dir.parent,  # where there is no .env
            env=inherited | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                self._wait(process, begin + DEADLINE_SECONDS)
                self.seconds = time.perf_counter() - begin
                time.sleep(IDLE_SECONDS)
                self.memory = self._memory(process.pid, data_dir)
            finally:
                process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=30)
                process.kill()

    def _wait(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        while time.perf_counter() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"the service ended with {process.returncode}; try `make run`")
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            with suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return
            connection.close()
            time.sleep(0.01)
        raise RuntimeError(f"the service was not ready within {DEADLINE_SECONDS:.0f} s; try `make run`")

    @staticmethod
    def _memory(pid: int, data_dir: Path) -> dict[str, int]:
        """Empty where the system has no /proc/PID/smaps_rollup."""
        try:
            service = _mapped(pid)
            postmaster = int((data_dir / "postgres/data/postmaster.pid").read_text().split()[0])
            children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
            postgres = sum(_mapped(child)["Pss"] for child in [postmaster, *map(int, children)])
        except FileNotFoundError:
            return {}
        return {"PSS": service["Pss"], "RSS": service["Rss"], "Postgres, PSS": postgres}


def run() -> Iterator[Figure]:
    """First start, later starts, memory of the later ones."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)  # started by root, the database server is another user and passes through
        data_dir = Path(directory, "data")
        first = Started(data_dir)
        later = [Started(data_dir) for _ in range(STARTS)]
    yield Figure("first start to ready", "s", [first.seconds])
    yield Figure("later start to ready", "s", [started.seconds for started in later], 6, 2)
    for name, bounds in (("PSS", (200, 120)), ("RSS", (None, None)), ("Postgres, PSS", (None, None))):
        values = [started.memory[name] / MEBIBYTE for started in later if name in started.memory]
        if values:
            yield Figure(f"idle memory: {name}", "MiB", values, *bounds)


def _mapped(pid: int) -> dict[str, int]:
    """A process' memory in bytes, by the names of proc(5)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kilobytes) * 1024 for name, kilobytes in re.findall(r"(\w+): +(\d+) kB", text)}
