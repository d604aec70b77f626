"""prometheus/rules, alertmanager.yml and runbooks, read by the real promtool and amtool."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.components import component

HOME = Path(__file__).parents[2] / "prometheus"
RULES = HOME / "rules" / "spanledger.yml"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
]


@pytest.mark.parametrize(
    "command",
    [
        ("promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES),
        ("promtool", "test", "rules", HOME / "tests" / "spanledger.yml"),
        ("amtool", "check-config", HOME / "alertmanager.yml"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_the_real_program_accepts(command: tuple[Any, ...]) -> None:
    program: list[Any] = [component(command[0]), *command[1:]]
    checked = subprocess.run(program, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_every_alert_goes_to_the_webhook_and_has_its_runbook(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    command: list[Any] = [component("amtool"), "config", "routes", "test", f"--config.file={HOME / 'alertmanager.yml'}"]
    routed = subprocess.run([*command, f"alertname={name}"], capture_output=True, text=True, check=True)
    assert routed.stdout.split() == ["webhook"]
    assert alert["labels"].keys() == {"severity"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"prometheus/runbooks/{name}.md"
    headings = re.findall(r"^#+ .*", (HOME / "runbooks" / f"{name}.md").read_text(), re.MULTILINE)
    assert headings == [f"# {name}", "## Meaning", "## Impact", "## Diagnosis", "## Mitigation"]


def test_there_is_no_runbook_without_an_alert() -> None:
    assert {page.stem for page in (HOME / "runbooks").iterdir()} == {alert["alert"] for alert in ALERTS}


def test_every_name_in_the_rules_is_documented() -> None:
    """tests/test_docs.py holds docs/metrics.md against the registry, so what the page has is exported."""
    page = (HOME.parent / "docs" / "metrics.md").read_text()
    groups = yaml.safe_load(RULES.read_text())["groups"]
    used = " ".join(rule["expr"] for group in groups for rule in group["rules"])
    names = {name.removesuffix("_bucket") for name in re.findall(r"\b(?:spanledger|gen_ai)_\w+", used)}
    labels = {label.strip() for inside in re.findall(r"by \(([^)]*)\)", used) for label in inside.split(",")}
    known = set(re.findall(r"`(\w+)`", page)) | {"job", "instance", "le"}
    assert (names | labels) - known == set()
