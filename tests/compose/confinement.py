"""What a container may do: as the engine was told, and as the kernel has it for the running process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Confinement:
    """The bounding set holds the capabilities any process of the container can ever have."""

    read_only: bool
    capabilities: int
    effective: int
    no_new_privileges: bool
    seccomp: bool
    root: bool


def wanted(service: dict[str, Any]) -> Confinement:
    """Of a service of docker-compose.yml. Every process that stays is to be somebody else than root."""
    return Confinement(
        read_only=service["read_only"],
        capabilities=len(service.get("cap_add", ())),
        effective=0,
        no_new_privileges="no-new-privileges:true" in service["security_opt"],
        seccomp=True,
        root=False,
    )


def of_process(container: dict[str, Any]) -> Confinement:
    """Of the first process of a running container."""
    process = Path("/proc", str(container["State"]["Pid"]))
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    mounts = [line.split() for line in (process / "mounts").read_text().splitlines()]
    (root,) = [options for _, place, _, options, *_ in mounts if place == "/"]
    return Confinement(
        read_only="ro" in root.split(","),
        capabilities=int(status["CapBnd"], 16).bit_count(),
        effective=int(status["CapEff"], 16).bit_count(),
        no_new_privileges=status["NoNewPrivs"] == "1",
        seccomp=status["Seccomp"] == "2",
        root="0" in status["Uid"].split(),
    )


def user(container: dict[str, Any]) -> str:
    """The user id of the first process."""
    status = Path("/proc", str(container["State"]["Pid"]), "status").read_text()
    return next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:"))


def told(container: dict[str, Any]) -> dict[str, Any]:
    """What the engine was told, also of a container that has ended."""
    host = container["HostConfig"]
    return {
        "read_only": host["ReadonlyRootfs"],
        "cap_drop": host["CapDrop"],
        "cap_add": sorted(name.removeprefix("CAP_") for name in host["CapAdd"] or ()),
        "security_opt": host["SecurityOpt"],
        "privileged": host["Privileged"],
    }


def published(container: dict[str, Any]) -> dict[str, set[str]]:
    """Address(es) of the host for each published port."""
    ports: dict[str, list[dict[str, str]] | None] = container["NetworkSettings"]["Ports"]
    return {port: {place["HostIp"] for place in places} for port, places in ports.items() if places}
