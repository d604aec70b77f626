"""`make compose-test`: docker-compose.yml brought up, used, taken down and brought up again."""

from __future__ import annotations

import faulthandler
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compose import confinement
from tests.compose.docker import docker
from tests.compose.images import provided
from tests.compose.report import Report
from tests.compose.service import FAILING, TOO_SHORT, Service
from tests.compose.stack import ONE_SHOTS, OTHER_IMAGES, ROOT, SERVICES, Stack, stack
from tests.end_to_end import sources
from tests.end_to_end.prometheus import Prometheus
from tests.end_to_end.waiting import becomes

GROUPS = yaml.safe_load((ROOT / "prometheus" / "rules" / "spanledger.yml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
READY = {"status": "ok", "checks": {"spool": "ok", "postgres": "ok"}}
ALERT_SECONDS = 180
"""A minute of `for`, and the intervals of Prometheus and Alertmanager."""


@pytest.mark.long
def test_the_stack(tmp_path: Path) -> None:
    faulthandler.cancel_dump_traceback_later()  # the first run builds for minutes; every wait here has its own end
    report = Report()
    with docker() as engine:
        with provided(engine, OTHER_IMAGES) as images, stack(engine, tmp_path) as running:
            report.saw("the images are there")
            running.compose("build", seconds=900)
            report.saw("our Dockerfile is built")
            running.up()
            report.saw(f"everything is up and healthy; {' and '.join(sorted(ONE_SHOTS))} ended with 0")
            confined(running)
            report.saw("each is confined, not root, and published on 127.0.0.1 only")
            prometheus = watched(running)
            report.saw("Prometheus scrapes the service and has every rule")
            service = Service(running)
            traces = used(service)
            report.saw("the requests of the seed document are answered, with tokens only")
            if images.stand_in(SERVICES["otel-collector"]["image"]):
                becomes({"/v1/traces"}, lambda: {path for path, _ in running.posted("otel-collector")})
                report.saw("the service sends its spans to the collector's address")
            moment = agreed(service, prometheus, traces)
            report.saw("/metrics, Prometheus, the admin endpoints and psql agree; an exemplar names a trace")
            alerted(running)
            report.saw("the alert of a failing agent was posted to the webhook, with its runbook")
            kept(running, moment)
            report.saw("after down and up the rows and samples are there, and new rows are stored")
            report.end(running, images)
        assert running.remains() == []


def confined(running: Stack) -> None:
    containers = running.containers()
    for service, body in SERVICES.items():
        assert confinement.told(containers[service]) == {
            "read_only": True,
            "cap_drop": ["ALL"],
            "cap_add": body.get("cap_add", []),
            "security_opt": ["no-new-privileges:true"],
            "privileged": False,
        }, service
        ports = {f"{port.rpartition(':')[2]}/tcp": {"127.0.0.1"} for port in body.get("ports", ())}
        assert confinement.published(containers[service]) == ports, service
        if service not in ONE_SHOTS:
            assert confinement.of_process(containers[service]) == confinement.wanted(body), service


def watched(running: Stack) -> Prometheus:
    prometheus = Prometheus(running.url("prometheus", 9090))
    prometheus.scraped_after(time.time() - 5)
    wanted = sorted((rule.get("record") or rule["alert"], "ok") for rule in RULES)
    becomes(wanted, lambda: sorted(prometheus.rules()))
    return prometheus


def used(service: Service) -> set[str]:
    """The trace ids of the requests."""
    assert service.get("/readyz") == READY
    assert service.to_strangers() == [401, 403]
    answers = [service.ask() for _ in range(4)] + [service.ask(FAILING)]
    assert [name for name, _ in answers] == ["result"] * 4 + ["error"]
    becomes(5, lambda: service.administer("metrics?hours=24")["metrics"]["total_requests"])
    metrics = service.administer("metrics?hours=24")["metrics"]
    documented = ("total_requests", "successful", "failed", "success_rate", "total_tokens_used")
    tokens = sum(data["tokens"] for _, data in answers[:4])
    assert [metrics[name] for name in documented] == [5, 4, 1, 0.8, tokens]
    assert service.administer("errors?limit=10")["count"] == 2
    assert service.administer(f"user-activity/{FAILING['user_id']}?limit=20")["count"] == 10
    return {data["trace_id"] for _, data in answers}


def agreed(service: Service, prometheus: Prometheus, traces: set[str]) -> float:
    """Also after five requests that do not end in time; a moment when Prometheus had all of it."""
    answers = [service.ask(TOO_SHORT) for _ in range(5)]
    assert [name for name, _ in answers] == ["error"] * 5
    agent = "main_orchestrator"
    wanted = Counter({(agent, "success"): 4, (agent, "failure"): 1, (agent, "timeout"): 5})
    becomes(wanted, lambda: service.stored()[1])
    assert service.counted() == service.stored()
    moment = prometheus.scraped_after(time.time())
    assert samples(prometheus, moment) == service.stored()[0]
    totals = sources.admin_metrics(service.url, service.admin_token)
    assert (totals["total_requests"], totals["successful"], totals["failed"]) == (10, 4, 6)
    service.stack.execute("app", "spanledger", "check")
    exemplars = [one for series in prometheus.exemplars("spanledger_requests_total") for one in series["exemplars"]]
    traced = {exemplar["labels"]["trace_id"] for exemplar in exemplars}
    assert traced & traces
    assert traced <= traces | {data["trace_id"] for _, data in answers}
    return moment


def samples(prometheus: Prometheus, moment: float) -> Counter[tuple[str, str]]:
    """The executions Prometheus had counted."""
    vector = prometheus.query("spanledger_executions_total", time=moment)
    return sources.of_samples(sources.of_prometheus(vector)).ledger.executions


def alerted(running: Stack) -> None:
    (rule,) = [rule for rule in RULES if rule.get("alert") == "SpanledgerAgentFailing"]
    share = "60% of the runs of main_orchestrator in spanledger failed in the last 5 minutes."
    wanted = {
        "status": "firing",
        "labels": {
            "alertname": rule["alert"],
            "deployment_environment_name": "production",
            "gen_ai_agent_name": "main_orchestrator",
            "service_name": "spanledger",
            "severity": "critical",
        },
        "annotations": rule["annotations"] | {"description": share},
    }

    def delivered() -> list[dict[str, Any]]:
        """Of this agent; the one below it fails as well."""
        alerts = [
            alert for path, body in running.posted("webhook") if path == "/" for alert in json.loads(body)["alerts"]
        ]
        ours = [alert for alert in alerts if alert["labels"].get("gen_ai_agent_name") == "main_orchestrator"]
        return [{name: alert[name] for name in wanted} for alert in ours]

    becomes([wanted], delivered, ALERT_SECONDS)
    assert (ROOT / rule["annotations"]["runbook_url"]).is_file()


def kept(running: Stack, moment: float) -> None:
    """Nothing is lost where the containers are made anew."""
    rows = Service(running).stored()
    counts = samples(Prometheus(running.url("prometheus", 9090)), moment)
    assert {found["RestartCount"] for found in running.containers().values()} == {0}
    running.compose("stop")
    codes = {name: found["State"]["ExitCode"] for name, found in running.containers().items()}
    assert codes == dict.fromkeys(codes, 0)  # nobody had to be killed
    running.compose("down")
    assert running.containers() == {}
    running.up()
    service = Service(running)
    assert service.stored() == rows
    prometheus = Prometheus(running.url("prometheus", 9090))
    prometheus.scraped_after(time.time() - 5)
    assert samples(prometheus, moment) == counts
    assert service.get("/readyz") == READY
    assert service.ask()[0] == "result"
    wanted = rows[1] + Counter({("main_orchestrator", "success"): 1})
    becomes(wanted, lambda: service.stored()[1])
