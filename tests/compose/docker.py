"""A Docker engine: the one that runs here, or one of our own that ends with the test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.components import absent

COMPONENTS = Path(__file__).resolve().parents[2] / ".components"
DRIVERS = ("overlay2", "vfs")
"""The quick one, then the one that works on every file system."""


class Docker:
    """The client of one engine. It sees few of our variables: Compose would take them for settings."""

    def __init__(self, host: str | None, *, ours: bool) -> None:
        self.ours = ours
        self.environment = {
            name: text
            for name, text in os.environ.items()
            if name in ("PATH", "HOME") or name.lower().endswith("_proxy")
        }
        if host:
            self.environment["DOCKER_HOST"] = host

    def __call__(self, *arguments: str, seconds: float = 60) -> str:
        return self.run("docker", *arguments, seconds=seconds)

    def run(self, *command: str, seconds: float) -> str:
        """What a command says; AssertionError with all of it where it fails."""
        done = self._run(*command, seconds=seconds)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-9000:]}{done.stderr[-9000:]}"
        return done.stdout

    def succeeds(self, *arguments: str, seconds: float = 60) -> bool:
        try:
            return self._run("docker", *arguments, seconds=seconds).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def inspect(self, *names: str) -> list[dict[str, Any]]:
        """Containers or images, whole; those that are not there are left out."""
        found: list[dict[str, Any]] = json.loads(self._run("docker", "inspect", *names, seconds=60).stdout or "[]")
        return found

    def _run(self, *command: str, seconds: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds, env=self.environment
        )


@contextmanager
def docker() -> Iterator[Docker]:
    """The engine that answers here, or one that is started, with its data in `.components/docker`."""
    if shutil.which("docker") is None:
        absent("docker is not on this machine: scripts/docker-components installs it")
    running = Docker(os.environ.get("DOCKER_HOST"), ours=False)
    if running.succeeds("info"):
        yield running
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        absent("no Docker engine answers, and only root with dockerd (scripts/docker-components) can start one")
    directory = Path(tempfile.mkdtemp(prefix="spanledger-docker-"))  # short: a socket's path has 107 characters at most
    try:
        with _engine(directory) as own:
            yield own
    finally:
        _remove(directory)


@contextmanager
def _engine(directory: Path) -> Iterator[Docker]:
    host = f"unix://{directory}/docker.sock"
    for driver in DRIVERS:
        # The engine ends with us even when we are killed.
        command = ["setpriv", "--pdeathsig", "TERM", "dockerd", "--host", host, "--storage-driver", driver]
        command += ["--data-root", str(COMPONENTS / "docker"), "--exec-root", str(directory / "exec")]
        # Without a limit of descriptors some programs spend minutes closing a billion of them.
        command += ["--pidfile", str(directory / "pid"), "--default-ulimit", "nofile=4096:4096"]
        with (directory / "log").open("wb") as log:
            engine = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            if _answers(engine, own := Docker(host, ours=True)):
                yield own
                return
        finally:
            engine.terminate()
            engine.wait(60)
    raise AssertionError(f"dockerd does not start:\n{(directory / 'log').read_text()[-9000:]}")


def _answers(engine: subprocess.Popen[bytes], client: Docker) -> bool:
    deadline = time.monotonic() + 60
    while engine.poll() is None and time.monotonic() < deadline:
        if client.succeeds("info"):
            return True
        time.sleep(0.1)
    return False


def _remove(directory: Path) -> None:
    """With what the engine leaves mounted there: the network namespace of the host."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in mounts:
        if mount.startswith(f"{directory}/"):
            subprocess.run(["umount", mount], check=True)
    shutil.rmtree(directory)
