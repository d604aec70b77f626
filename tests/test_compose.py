"""docker-compose.yml and what it mounts fit together; `make check` holds it against the Compose schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests.compose.images import HERE as STAND_INS
from tests.compose.stack import OTHER_IMAGES

ROOT = Path(__file__).resolve().parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOTS = {"migrate", "logins"}


def environment() -> dict[tuple[str, str], str]:
    """Every variable of every service."""
    return {
        (service, name): value
        for service, body in SERVICES.items()
        for name, value in body.get("environment", {}).items()
    }


def test_the_stack_has_these_services_and_needs_no_newer_compose() -> None:
    names = "postgres migrate logins app prometheus alertmanager grafana tempo otel-collector"
    assert list(SERVICES) == names.split()
    assert set(COMPOSE) == {"x-hardened", "services", "volumes"}


def test_images_are_pinned() -> None:
    images = {service: body["image"] for service, body in SERVICES.items()}
    assert [image for image in images.values() if not re.fullmatch(r"[\w/-]+:v?\d+\.\d+(\.\d+)?", image)] == []
    assert images["postgres"] == images["logins"]
    assert images["app"] == images["migrate"] == "spanledger:0.1.0"


def test_ports_are_published_on_loopback_only() -> None:
    published = sorted(port for body in SERVICES.values() for port in body.get("ports", ()))
    assert published == [f"127.0.0.1:{port}:{port}" for port in (3000, 4317, 4318, 8000, 9090)]
    assert [service for service, body in SERVICES.items() if "network_mode" in body] == []


def test_secrets_have_no_default_and_say_what_to_do() -> None:
    secrets = {key: value for key, value in environment().items() if re.search("PASSWORD|TOKEN|WEBHOOK", key[1])}
    assert len(secrets) == 11
    assert {
        key: value for key, value in secrets.items() if not re.fullmatch(r"\$\{\w+:\?put .+ into \.env\}", value)
    } == {}
    assert {key: value for key, value in environment().items() if re.search(r"://[^/@]*:[^/@]*@", value)} == {}
    asked = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text()))
    explained = set(re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert asked - explained == set()


def test_every_service_is_confined() -> None:
    for service, body in SERVICES.items():
        assert body["read_only"] is True, service
        assert body["cap_drop"] == ["ALL"], service
        assert body["security_opt"] == ["no-new-privileges:true"], service
        assert body["restart"] == ("no" if service in ONE_SHOTS else "unless-stopped"), service
    added = {service: body["cap_add"] for service, body in SERVICES.items() if "cap_add" in body}
    assert added == {"postgres": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"]}


def test_mounts_exist_and_are_read_only() -> None:
    mounts = [mount.split(":") for body in SERVICES.values() for mount in body.get("volumes", ())]
    bound = [mount for mount in mounts if mount[0].startswith(".")]
    assert [mount for mount in bound if not (ROOT / mount[0]).exists() or mount[2:] != ["ro"]] == []
    assert {mount[0] for mount in mounts if mount not in bound} == set(COMPOSE["volumes"])
    # A mount inside a read-only one needs its directory there.
    assert (ROOT / "prometheus" / "targets").is_dir()


def test_grafana_gets_every_variable_its_provisioning_asks_for() -> None:
    provisioning = "".join(path.read_text() for path in (ROOT / "grafana" / "provisioning").rglob("*.yml"))
    asked = set(re.findall(r"\$(\w+)", provisioning))
    given = {name for service, name in environment() if service == "grafana"}
    assert asked - given == set()
    addresses = {"PROMETHEUS_URL", "POSTGRES_ADDRESS", "GRAFANA_DATABASE_PASSWORD", "TEMPO_URL", "ALERTMANAGER_URL"}
    assert addresses - given == set()


def test_prometheus_finds_the_services_by_their_names_here() -> None:
    targets = ROOT / "prometheus" / "targets-compose"
    found = {path.stem: yaml.safe_load(path.read_text()) for path in targets.iterdir()}
    assert found == {
        "alertmanager": [{"targets": ["alertmanager:9093"]}],
        "spanledger": [{"targets": ["app:8000"]}],
    }
    assert {path.name for path in (ROOT / "prometheus" / "targets").iterdir()} == {
        path.name for path in targets.iterdir()
    }


def test_alertmanager_posts_to_the_url_of_the_environment() -> None:
    (replaced,) = re.findall(r'sed "s\|(.+?)\|\$\$ALERT_WEBHOOK_URL\|"', SERVICES["alertmanager"]["entrypoint"][2])
    assert (ROOT / "prometheus" / "alertmanager.yml").read_text().count(replaced) == 1


def test_every_image_has_a_stand_in() -> None:
    stages = re.findall(r"^FROM .+ AS (.+)$", (STAND_INS / "Dockerfile").read_text(), re.MULTILINE)
    assert {image.rpartition("/")[2].partition(":")[0] for image in OTHER_IMAGES} <= set(stages)
