"""A broken agent and a stopped service reach the webhook: our rules and routes in the real programs, only quicker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.database import Database
from tests.app.service import NO_DATABASE, SEED, Service, free_port
from tests.components import component
from tests.end_to_end.alertmanager import alertmanager, webhook
from tests.end_to_end.prometheus import Prometheus, prometheus
from tests.end_to_end.waiting import eventually

TEMPLATES = Path("/usr/share/prometheus/alertmanager")
HOME = Path(__file__).parents[2] / "prometheus"


def rewrite(path: Path, *changes: tuple[str, str]) -> None:
    """Replace patterns in a file; each must be there."""
    text = path.read_text()
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text)
        assert count, pattern
    path.write_text(text)


def doctor(service: Service, prometheus_url: str) -> dict[str, tuple[str, str]]:
    """What `spanledger doctor --json` says of the service: status and detail by check."""
    environment = {"SPANLEDGER_DATA_DIR": str(service.data_dir), "PORT": str(service.port)}
    environment |= {"DATABASE_URL": NO_DATABASE, "PROMETHEUS_URL": prometheus_url, "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "app", "doctor", "--json"]
    found = subprocess.run(command, cwd=HOME.parent, env=environment, capture_output=True, text=True, timeout=60)
    return {check["name"]: (check["status"], check["detail"]) for check in json.loads(found.stdout)["checks"]}


def blocks(language: str) -> list[str]:
    """The queries of all runbooks."""
    pages = "\n".join(page.read_text() for page in sorted((HOME / "runbooks").iterdir()))
    return re.findall(rf"```{language}\n(.*?)```", pages, re.DOTALL)


def test_the_queries_of_the_runbooks_are_accepted(database: Database, tmp_path: Path) -> None:
    with prometheus(tmp_path, "127.0.0.1:1") as server:
        eventually(lambda: server.answers())
        for query in blocks("promql"):
            assert isinstance(server.query(query), list), query
    with database.connect("spanledger_admin") as connection:
        for statement in blocks("sql"):
            connection.exec_driver_sql(statement.replace("%", "%%"))
    assert len(blocks("promql")) > 4
    assert len(blocks("sql")) > 1


# Debian's Alertmanager reads its templates from this place only, and only root can put them there.
@pytest.mark.skipif(
    os.geteuid() != 0 and not TEMPLATES.is_dir(), reason=f"Alertmanager's templates are not in {TEMPLATES}"
)
def test_alerts_reach_the_webhook(tmp_path: Path) -> None:
    home = tmp_path / "prometheus"
    shutil.copytree(HOME, home)
    quick = [(r"(scrape_interval|scrape_timeout|evaluation_interval): \d+s", r"\1: 1s")]
    rewrite(home / "prometheus.yml", *quick)
    rewrite(home / "rules" / "spanledger.yml", (r"for: \dm", "for: 1s"))
    with (
        webhook() as receiver,
        Service(tmp_path / "data", DATABASE_URL=NO_DATABASE) as service,
    ):
        url = ("http://127.0.0.1:9095/", receiver.url)
        rewrite(home / "alertmanager.yml", url, (r"(group_wait|group_interval): \d+[sm]", r"\1: 1s"))
        rewrite(home / "targets" / "spanledger.yml", (r"127\.0\.0\.1:8000", f"127.0.0.1:{service.port}"))
        with alertmanager(home / "alertmanager.yml", tmp_path) as address:
            rewrite(home / "targets" / "alertmanager.yml", (r"127\.0\.0\.1:9093", address))
            listen = f"127.0.0.1:{free_port()}"
            command = [
                str(component("prometheus")),
                f"--config.file={home / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address={listen}",
            ]
            log_file = tmp_path / "prometheus.log"
            with log_file.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
                try:
                    service.ready("degraded")
                    Prometheus(f"http://{listen}").scraped_after(0)
                    broken = SEED | {"options": {"content": ""}}
                    for _ in range(10):
                        service.ask(broken)
                    alert = receiver.firing("SpanledgerAgentFailing", gen_ai_agent_name="flashcard_generation")
                    assert alert["labels"]["severity"] == "critical"
                    assert "of the runs of flashcard_generation in" in alert["annotations"]["description"]
                    runbook = "prometheus/runbooks/SpanledgerAgentFailing.md"
                    assert alert["annotations"]["runbook_url"] == runbook
                    seen = doctor(service, f"http://{listen}")
                    rules = len(re.findall(r"- alert:", (home / "rules" / "spanledger.yml").read_text()))
                    assert seen["prometheus"][0] == "ok"
                    assert seen["alert_rules"] == ("ok", f"{rules} loaded")
                    assert seen["alertmanager"] == ("ok", address)
                    service.stop()
                    down = receiver.firing("SpanledgerDown")
                    assert down["labels"]["instance"] == f"127.0.0.1:{service.port}"
                finally:
                    server.terminate()
                    server.wait(30)
