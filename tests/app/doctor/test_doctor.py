"""Doctor beside the real service, well and ill."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from app.cli import spanledger
from app.doctor.finding import Finding
from app.doctor.report import CHECKS, Findings, examine, status, to_json, to_text
from app.settings import Settings
from tests.app.service import NO_DATABASE, TOKEN, Service, free_port
from tests.conftest import memory_disk, reachable_directory
from tests.end_to_end.prometheus import prometheus

Examine = Callable[..., Findings]

OFFLINE = {"prometheus", "alert_rules", "alertmanager"}


@pytest.fixture(scope="module")
def well() -> Iterator[Service]:
    """A service that has run an agent whose row has arrived."""
    with reachable_directory(memory_disk()) as directory, Service(directory / "data") as service:
        service.ready().ask()
        deadline = time.monotonic() + 60
        while not service.executions():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield service


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Examine a service with the environment it was given, and `variables`. Port 9090 may be somebody's here."""

    def at(service: Service, now: Callable[[], float] = time.time, **variables: str) -> Findings:
        monkeypatch.chdir(tmp_path)
        for name in list(os.environ):
            if name.lower() in Settings.model_fields:
                monkeypatch.delenv(name)
        given = {"SPANLEDGER_DATA_DIR": str(service.data_dir), "PORT": str(service.port)}
        for name, text in (given | variables).items():
            monkeypatch.setenv(name, text)
        monkeypatch.setattr("app.doctor.prometheus.USUAL", "http://127.0.0.1:1")
        return examine(now)

    return at


def by_status(findings: Findings, wanted: str) -> set[str]:
    return {name for name, found in findings.items() if found.status == wanted}


def test_a_well_service(well: Service, look: Examine) -> None:
    findings = look(well)
    assert list(findings) == ["settings", *(check.name for check in CHECKS)]
    assert by_status(findings, "skip") == OFFLINE
    assert by_status(findings, "ok") == findings.keys() - OFFLINE, findings
    assert findings["service"].detail == f"answers at {well.url}"
    assert status(findings) == "ok"


def test_the_command_prints_json_and_never_the_token(well: Service, look: Examine) -> None:
    look(well)  # for its environment
    token = (well.data_dir / "admin-token").read_text().strip()
    result = CliRunner().invoke(spanledger, ["doctor", "--json"])
    body = json.loads(result.stdout)
    assert (result.exit_code, body["status"]) == (0, "ok")
    assert body["checks"][0] == {
        "name": "settings",
        "status": "ok",
        "detail": f"data directory {well.data_dir}",
        "advice": "",
    }
    assert token not in result.output
    assert "\x1b" not in CliRunner().invoke(spanledger, ["doctor"]).output


def test_a_wrong_token(well: Service, look: Examine) -> None:
    findings = look(well, ADMIN_TOKEN=TOKEN)
    assert by_status(findings, "FAIL") == {"admin_token"}
    assert findings["admin_token"] == Finding(
        "FAIL",
        "the service refuses the token of ADMIN_TOKEN with 403",
        "Verify ADMIN_TOKEN in .env (or the file) and restart the service after changing it: it is read at start only.",
    )
    assert TOKEN not in to_json(findings)


def test_a_rejected_row(well: Service, look: Examine) -> None:
    rejected = well.data_dir / "spool" / "rejected.ndjson"
    rejected.write_text("{}\n{}\n")
    try:
        findings = look(well)
    finally:
        rejected.unlink()
    assert by_status(findings, "warn") == {"rejected_rows"}
    assert findings["rejected_rows"].detail == f"2 in {rejected}"
    assert status(findings) == "warn"


@pytest.mark.parametrize(("seconds", "expected"), [(-30, "warn"), (120, "FAIL"), (-120, "FAIL")])
def test_a_wrong_clock(well: Service, look: Examine, seconds: int, expected: str) -> None:
    findings = look(well, now=lambda: time.time() + seconds)
    assert by_status(findings, expected) == {"clock"}
    assert f"database {-seconds:+}" in findings["clock"].detail


def test_prometheus_that_scrapes(well: Service, look: Examine, tmp_path: Path) -> None:
    with prometheus(tmp_path, f"127.0.0.1:{well.port}") as server:
        server.scraped_after(0)
        url = server.url.removesuffix("/api/v1")
        findings = look(well, PROMETHEUS_URL=url)
        assert findings["prometheus"] == Finding("ok", f"{url} scrapes {well.url}/metrics: up")
        assert findings["alertmanager"].status == "warn"
        assert by_status(findings, "FAIL") == set()


def test_prometheus_that_is_away(well: Service, look: Examine) -> None:
    findings = look(well, PROMETHEUS_URL="http://user:hunter2@127.0.0.1:1")
    assert by_status(findings, "FAIL") == {"prometheus"}
    assert "hunter2" not in to_json(findings)


def test_a_service_that_is_not_there(tmp_path: Path, look: Examine) -> None:
    with Service(tmp_path / "data", PORT="0") as service:  # never starts: no such port
        service.end()
        findings = look(service, PORT=str(free_port()))
    assert by_status(findings, "FAIL") == {"service", "database", "admin_token", "spool"}
    assert by_status(findings, "ok") >= {"settings", "disk", "rejected_rows"}
    assert status(findings) == "FAIL"
    assert CliRunner().invoke(spanledger, ["doctor"]).exit_code == 1


def test_a_database_that_is_away(data_dir: Path, look: Examine) -> None:
    with Service(data_dir, DATABASE_URL=NO_DATABASE, ADMIN_TOKEN=TOKEN) as service:
        service.ready("degraded").ask()
        began = time.monotonic()
        findings = look(service, DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/nowhere", ADMIN_TOKEN=TOKEN)
        assert time.monotonic() - began < 20
    assert by_status(findings, "FAIL") == {"database"}
    assert "ready" in by_status(findings, "warn")
    assert by_status(findings, "skip") >= {"migrations", "partitions", "roles", "rows"}
    assert findings["admin_token"].detail == "the one of ADMIN_TOKEN is accepted, though the database is away"
    assert "hunter2" not in to_json(findings)


def test_wrong_settings(tmp_path: Path, look: Examine, well: Service) -> None:
    findings = look(well, PORT="http")
    assert findings["settings"].detail == "PORT must be a whole number, at least 1, at most 65535"
    assert by_status(findings, "skip") == findings.keys() - {"settings"}


def test_a_database_url_that_cannot_be_read(well: Service, look: Examine) -> None:
    findings = look(well, DATABASE_URL="postgresql://u:hunter2@host:port/x")
    assert findings["database"].detail == "DATABASE_URL: not a URL of Postgres"
    assert by_status(findings, "FAIL") == {"database"}
    assert "hunter2" not in to_json(findings)


def test_something_else_listens(look: Examine, well: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    found = httpx.Response(404, text="no", request=httpx.Request("GET", f"{well.url}/healthz"))
    monkeypatch.setattr("app.doctor.patient.Patient.get", lambda *_, **__: found)
    findings = look(well)
    assert findings["service"].status == findings["ready"].status == "FAIL"


def test_the_print_is_aligned() -> None:
    lines = to_text({"disk": Finding("warn", "little", "Make room."), "spool": Finding("ok", "empty")}, 80).splitlines()
    assert lines == [
        "\x1b[33mwarn\x1b[0m  disk           little",
        "                     -> Make room.",
        "\x1b[32mok  \x1b[0m  spool          empty",
    ]
