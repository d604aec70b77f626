"""docker-compose.yml, running: with ports the engine chooses, fresh secrets, and a webhook for the alerts."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.compose.docker import Docker
from tests.end_to_end.waiting import becomes

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
ONE_SHOTS = {service for service, body in SERVICES.items() if body["restart"] == "no"}
(BASE_IMAGE,) = re.findall(r"\$\{BASE_IMAGE:-(.+?)\}", TEXT)
OUR_IMAGES = {body["image"] for body in SERVICES.values() if "build" in body}
OTHER_IMAGES = {BASE_IMAGE} | {body["image"] for body in SERVICES.values()} - OUR_IMAGES
PROJECT = "spanledger-compose-test"
READY_SECONDS = 180


class Stack:
    """One project of Compose. `settings` are what `.env` has."""

    def __init__(self, docker: Docker, directory: Path) -> None:
        self.docker = docker
        self.settings = {name: secrets.token_urlsafe() for name in re.findall(r"\$\{(\w+):\?", TEXT)}
        self.settings["ALERT_WEBHOOK_URL"] = "http://webhook:9095/"
        env = directory / "env"
        env.write_text("".join(f"{name}={value}\n" for name, value in self.settings.items()))
        file = directory / "docker-compose.yml"
        file.write_text(re.sub(r'"127\.0\.0\.1:\d+:(\d+)"', r'"127.0.0.1::\1"', TEXT))
        webhook = Path(__file__).with_name("webhook.yml")
        # The plugin where there is one, else the program before it.
        self._program = "docker compose" if docker.succeeds("compose", "version") else "docker-compose"
        self._command = [*self._program.split(), "--project-name", PROJECT, "--project-directory", str(ROOT)]
        self._command += ["--env-file", str(env)]
        self._command += ["--file", str(file), "--file", str(webhook)]

    def compose(self, *arguments: str, seconds: float = 300) -> str:
        return self.docker.run(*self._command, *arguments, seconds=seconds)

    def up(self) -> None:
        """Start everything, and wait until each service is in its state."""
        try:
            self.compose("up", "--detach")
            assert set(SERVICES) < set(self.containers())
            becomes(self._wanted(), self._states, READY_SECONDS)
        except AssertionError as error:
            error.add_note(self.compose("logs", "--no-color", "--tail=20"))
            raise

    def containers(self) -> dict[str, dict[str, Any]]:
        """What the engine says of each service's container."""
        ids = self.docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
        return {found["Config"]["Labels"]["com.docker.compose.service"]: found for found in self.docker.inspect(*ids)}

    def url(self, service: str, port: int) -> str:
        """Where a port of a service is published."""
        (place,) = self.containers()[service]["NetworkSettings"]["Ports"][f"{port}/tcp"]
        return f"http://{place['HostIp']}:{place['HostPort']}"

    def posted(self, service: str) -> list[tuple[str, str]]:
        """Path and body of every POST a listener had."""
        log = self.docker("logs", self.containers()[service]["Id"])
        return [(path, body) for path, body in map(json.loads, log.splitlines())]

    def execute(self, service: str, *command: str) -> str:
        return self.docker("exec", self.containers()[service]["Id"], *command)

    def version(self) -> str:
        """Compose and the engine."""
        engine = self.docker("info", "--format", "Docker {{.ServerVersion}} with {{.Driver}}")
        return f"{self._program} {self.compose('version', '--short').strip()} on {engine.strip()}"

    def remains(self) -> list[str]:
        """Containers, networks and volumes that are still there."""
        label = f"label=com.docker.compose.project={PROJECT}"
        kinds = (["ps", "--all"], ["network", "ls"], ["volume", "ls"])
        return [line for kind in kinds for line in self.docker(*kind, "--quiet", "--filter", label).split()]

    def _wanted(self) -> dict[str, str]:
        running = {
            name: "running healthy" if found["State"].get("Health") else "running"
            for name, found in self.containers().items()
        }
        return running | dict.fromkeys(ONE_SHOTS, "exited 0")

    def _states(self) -> dict[str, str]:
        return {name: _state(found["State"]) for name, found in self.containers().items()}


def _state(state: dict[str, Any]) -> str:
    detail = state["ExitCode"] if state["Status"] == "exited" else state.get("Health", {}).get("Status", "")
    return f"{state['Status']} {detail}".strip()


@contextmanager
def stack(docker: Docker, directory: Path) -> Iterator[Stack]:
    """A stack that is not up yet; afterwards nothing is left of it."""
    one = Stack(docker, directory)
    one.compose("down", "--volumes", "--timeout=5")  # what a test that was killed has left
    try:
        yield one
    finally:
        one.compose("down", "--volumes", "--timeout=5")
