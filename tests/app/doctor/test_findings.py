"""What single checks make of the service's metrics, its files and a real database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.database import Database
from app.doctor import admin_token, database, service, spool
from app.doctor.finding import Finding
from app.doctor.patient import Metrics, Patient
from app.settings import Settings
from tests.app.service import free_port
from tests.conftest import Server

NOW = 1_800_000_000.0


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Patient]:
    """Nobody at home."""
    patient = Patient(Settings(spanledger_data_dir=tmp_path, port=free_port(), spool_max_bytes=1 << 20), lambda: NOW)
    yield patient
    patient.close()


def scraped(patient: Patient, *lines: str) -> Patient:
    """The patient, with these metrics."""
    patient.__dict__["_metrics"] = Metrics("\n".join(lines) + "\n")
    return patient


@pytest.fixture
def stored(database: Database, tmp_path: Path) -> Iterator[Patient]:
    """The patient of an empty, migrated database."""
    url = SecretStr(database.url.render_as_string(hide_password=False))
    patient = Patient(Settings(spanledger_data_dir=tmp_path, port=free_port(), database_url=url))
    yield patient
    patient.close()


@pytest.mark.parametrize(
    ("labels", "status"),
    [
        ('provider="global",sampler="AlwaysOnSampler",records="all"', "ok"),
        ('provider="other",sampler="AlwaysOnSampler",records="all"', "warn"),
        ('provider="global",sampler="TraceIdRatioBased{0.1}",records="sampled"', "FAIL"),
        ('provider="other",sampler="TraceIdRatioBased{0.1}",records="sampled"', "FAIL"),
    ],
)
def test_the_tracer_provider(patient: Patient, labels: str, status: str) -> None:
    found = service.tracing(scraped(patient, f"spanledger_tracer_provider_info{{{labels}}} 1.0"))
    assert found.status == status
    assert ("AlwaysRecord" in found.advice) is (status == "FAIL")


def test_lost_rows_and_errors(patient: Patient) -> None:
    scraped(
        patient,
        'spanledger_rows_dropped_total{reason="spool_full"} 3.0',
        'spanledger_rows_dropped_total{reason="error"} 0.0',
        'spanledger_errors_total{where="sink"} 2.0',
    )
    assert (spool.dropped_rows(patient).status, spool.dropped_rows(patient).detail) == ("warn", "spool_full 3")
    assert (spool.errors(patient).status, spool.errors(patient).detail) == ("warn", "sink 2")


@pytest.mark.parametrize(
    ("waiting", "age", "status"), [(0, 0, "ok"), (10, 59, "ok"), (10, 61, "warn"), (95, 1, "FAIL")]
)
def test_the_spool_by_metrics(patient: Patient, waiting: int, age: int, status: str) -> None:
    (patient.data_dir / "spool").mkdir()
    scraped(
        patient,
        f"spanledger_spool_bytes {waiting}.0",
        "spanledger_spool_capacity_bytes 100.0",
        f"spanledger_spool_oldest_age_seconds {age}.0",
    )
    found = spool.spool(patient)
    assert (found.status, found.detail) == (status, f"{waiting} bytes of 100 bytes wait, the oldest {age} s")


def test_the_spool_that_a_stopped_service_left(patient: Patient) -> None:
    writer = patient.data_dir / "spool" / "1"
    writer.mkdir(parents=True)
    assert spool.spool(patient).status == "ok"
    (writer / "000000000001.v1.executions").write_bytes(b"x" * 2048)
    found = spool.spool(patient)
    assert (found.status, found.detail[:10]) == ("warn", "2 KiB wait")


def test_a_token_file_that_others_read(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    path = patient.data_dir / "admin-token"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o644)
    monkeypatch.setattr(Patient, "alive", None)
    monkeypatch.setattr(admin_token, "_try", lambda *_: 200)
    found = admin_token.admin_token(patient)
    assert found == Finding("warn", f"accepted; others may read {path}", f"chmod 600 {path}")


def test_rows_that_were_counted_and_not_stored(stored: Patient) -> None:
    start = f"process_start_time_seconds {time.time() - 100}"
    counted = 'spanledger_executions_total{status="success"} 2.0'
    assert database.rows(scraped(stored, start)).status == "warn"
    assert database.rows(scraped(stored, start, counted)).status == "FAIL"
    waiting = "spanledger_spool_bytes 10.0"
    assert database.rows(scraped(stored, start, counted, waiting)).status == "warn"


def test_a_migrated_database(stored: Patient) -> None:
    looks = (database.database, database.migrations, database.partitions, database.roles)
    assert [look(stored).status for look in looks] == ["ok", "ok", "ok", "ok"]


def test_a_database_without_a_schema(server: Server, tmp_path: Path) -> None:
    with server.database("template0") as empty:
        url = SecretStr(empty.url.render_as_string(hide_password=False))
        patient = Patient(Settings(spanledger_data_dir=tmp_path, port=free_port(), database_url=url))
        looks = (database.migrations, database.partitions, database.rows)
        assert [look(patient).status for look in looks] == ["FAIL", "FAIL", "FAIL"]
        patient.close()
