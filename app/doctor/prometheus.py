"""Does Prometheus scrape us, know our alerts, and have somebody to tell?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from httpx import HTTPStatusError

from app.doctor.finding import Check, Finding, fail, ok, skip, warn
from app.doctor.patient import Away, Patient

USUAL = "http://127.0.0.1:9090"
SECONDS = 2.0
RULES = Path(__file__).resolve().parents[2] / "prometheus" / "rules"


def prometheus(patient: Patient) -> Finding:
    """Its targets."""
    wanted = patient.settings.prometheus_url is not None
    try:
        targets = _ask(patient, "targets", state="active")["activeTargets"]
    except Away as away:
        if not wanted:
            return skip(f"PROMETHEUS_URL is unset and none is at {USUAL}", "Set PROMETHEUS_URL if there is one.")
        return fail(f"{_address(patient)}: {away}", "Start it, or correct PROMETHEUS_URL.")
    port = patient.settings.port
    ours = [one for one in targets if one["labels"].get("job") == "spanledger" or _port(one["scrapeUrl"]) == port]
    # A job may have other replicas: ours comes first.
    ours.sort(key=lambda one: _port(one["scrapeUrl"]) != port)
    if not ours:
        advice = f"Add a target with port {port} under the job spanledger, as prometheus/prometheus.yml does."
        return (fail if wanted else warn)(f"{_address(patient)} scrapes no spanledger", advice)
    seen = f"{_address(patient)} scrapes {ours[0]['scrapeUrl']}"
    if ours[0]["health"] == "up":
        return ok(f"{seen}: up")
    if ours[0]["health"] == "unknown":
        return warn(f"{seen}: not yet", "Look again after its scrape_interval.")
    return fail(f"{seen}: {ours[0]['health']}, {ours[0]['lastError']}", "Correct the target, or start the service.")


def alert_rules(patient: Patient) -> Finding:
    """Those of prometheus/rules."""
    try:
        groups = _ask(patient, "rules", type="alert")["groups"]
    except Away:
        return skip("no Prometheus")
    loaded = {rule["name"] for group in groups for rule in group["rules"] if rule["name"].startswith("Spanledger")}
    expected = {
        name
        for file in sorted(RULES.glob("*.yml"))
        for name in re.findall(r"^\s*-?\s*alert:\s*[\"']?(Spanledger\w+)", file.read_text("utf-8"), re.MULTILINE)
    }
    if missing := sorted(expected - loaded):
        advice = "Name prometheus/rules/*.yml under rule_files of Prometheus and reload it."
        return warn(f"{len(loaded)} loaded, missing: {', '.join(missing)}", advice)
    if not loaded:
        return skip("none loaded, and none in prometheus/rules to compare")
    return ok(f"{len(loaded)} loaded")


def alertmanager(patient: Patient) -> Finding:
    """Who Prometheus tells."""
    try:
        active = _ask(patient, "alertmanagers")["activeAlertmanagers"]
    except Away:
        return skip("no Prometheus")
    if not active:
        return warn("Prometheus has none: alerts reach nobody", "Name one under alerting.alertmanagers.")
    # Prometheus lists whom it would tell, whether they answer or not.
    away = []
    for url in (urlsplit(one["url"]) for one in active):
        try:
            health = url.path.removesuffix("/api/v2/alerts") + "/-/healthy"
            patient.get(url._replace(path=health).geturl(), timeout=SECONDS).raise_for_status()
        except (Away, HTTPStatusError):
            away.append(f"{url.hostname}:{url.port}")
    if away:
        advice = "Start it, unless it is in a network that only Prometheus reaches."
        return warn(f"no answer from here: {', '.join(away)}", advice)
    return ok(", ".join(f"{urlsplit(one['url']).hostname}:{_port(one['url'])}" for one in active))


def _ask(patient: Patient, path: str, **parameters: str) -> Any:
    """The data of an answer.

    Raises:
        Away: No answer, or not one of Prometheus.
    """
    url = (patient.settings.prometheus_url or USUAL).rstrip("/")
    answer = patient.get(f"{url}/api/v1/{path}", params=parameters, timeout=SECONDS)
    try:
        body = answer.json()
        if body["status"] == "success":
            return body["data"]
    except (ValueError, KeyError, TypeError):
        pass  # the same as an error
    raise Away(f"answers {answer.status_code}, and not as Prometheus does")


def _address(patient: Patient) -> str:
    """Its URL without a password."""
    parts = urlsplit(patient.settings.prometheus_url or USUAL)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _port(url: str) -> int | None:
    parts = urlsplit(url)
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme)


CHECKS = (
    Check("prometheus", prometheus),
    Check("alert_rules", alert_rules),
    Check("alertmanager", alertmanager),
)
