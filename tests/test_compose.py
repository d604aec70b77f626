"""docker-compose.yml and what it mounts fit together; `make check` holds it against the Compose schema."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = (ROOT / "docker-compose.yml").read_text()


def test_grafana_gets_every_variable_its_provisioning_asks_for() -> None:
    provisioning = "".join(path.read_text() for path in (ROOT / "grafana" / "provisioning").rglob("*.yml"))
    asked = set(re.findall(r"\$(\w+)", provisioning))
    given = set(re.findall(r"^      (\w+): ", COMPOSE, re.MULTILINE))
    assert asked == {"PROMETHEUS_URL", "POSTGRES_ADDRESS", "GRAFANA_DATABASE_PASSWORD"}
    assert asked - given == set()


def test_passwords_have_no_default_and_ports_are_loopback() -> None:
    passwords = re.findall(r"^      (\w*PASSWORD): (.*)", COMPOSE, re.MULTILINE)
    assert [name for name, value in passwords if not re.fullmatch(r"\$\{\w+:\?.+\}", value)] == []
    assert re.findall(r'^      - "(.*):\d+:\d+"', COMPOSE, re.MULTILINE) == ["127.0.0.1"]
    assert COMPOSE.count("network_mode: host") == len(re.findall(r"(?:address=|HTTP_ADDR: )127\.0\.0\.1", COMPOSE))


def test_images_are_pinned_and_mounts_exist() -> None:
    assert all(re.fullmatch(r".+:v?\d+\.\d+(\.\d+)?", image) for image in re.findall(r"image: (.+)", COMPOSE))
    mounts = re.findall(r"^      - (\./[^:]+):", COMPOSE, re.MULTILINE)
    assert [mount for mount in mounts if not (ROOT / mount).is_dir()] == []
