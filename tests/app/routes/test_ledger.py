"""`/api/admin/ledger`, of one process and of several workers."""

from __future__ import annotations

import os
import signal
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app import openapi
from app.database import Database
from app.schemas import LedgerAnswer
from tests.app.service import Service
from tests.app.test_workers import WORKERS, ask, pids, url_of
from tests.end_to_end.waiting import eventually


def ledger(service: Service, hours: int = 24) -> dict[str, Any]:
    token = (service.data_dir / "admin-token").read_text().strip()
    url = f"{service.url}/api/admin/ledger?hours={hours}"
    answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=30).raise_for_status()
    LedgerAnswer.model_validate_json(answer.content)
    found: dict[str, Any] = answer.json()
    return found


def settled(service: Service, executions: int) -> dict[str, Any]:
    """Once this many executions are stored."""
    found: dict[str, Any] = {}

    def stored() -> bool:
        nonlocal found
        found = ledger(service)
        idle = found["executions"]["in_flight"] == 0  # as the workers said within the last second
        return sum(hour["rows"] for hour in found["hours"]) >= executions and idle and bool(found["balanced"])

    eventually(stored)
    return found


@pytest.mark.parametrize("command", [(), WORKERS], ids=["one", "workers"])
def test_everything_is_accounted_for(command: tuple[str, ...], database: Database, data_dir: Any) -> None:
    with Service(data_dir, *command, DATABASE_URL=url_of(database), LOG_LEVEL="error") as service:
        service.ready()
        ask(service, 4)  # two agents and a model call each
        found = settled(service, 8)
        hours = found.pop("hours")
        assert found == {
            "balanced": True,
            "executions": {
                **{"started": 8, "in_flight": 0, "ended": 8, "spooled": 8, "dropped": 0, "rejected": 0},
                "unexplained": 0,
            },
            "rows": {"sealed": 12, "waiting": 0, "stored": 12, "duplicates": 0, "rejected": 0, "unexplained": 0},
        }
        assert [hour["rows"] for hour in hours] == [hour["rolled_up"] for hour in hours]
        assert sum(hour["rows"] for hour in hours) == 8


def test_a_killed_worker_leaves_nothing_unexplained(database: Database, data_dir: Any) -> None:
    with Service(data_dir, *WORKERS, DATABASE_URL=url_of(database), LOG_LEVEL="error") as service:
        service.ready()
        eventually(lambda: len(pids(service)) == 2)
        ask(service, 10)
        for victim in pids(service):
            os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(pids(service)) == 2)
        ask(service, 2)
        found = settled(service, 24)
        assert found["rows"]["stored"] == 36


def test_a_row_that_is_gone_is_seen(database: Database, data_dir: Any) -> None:
    with Service(data_dir, DATABASE_URL=url_of(database), LOG_LEVEL="error") as service:
        service.ready().ask()
        settled(service, 2)
        with database.connect("spanledger_admin") as connection:
            connection.execute(text("RESET ROLE"))
            connection.execute(text("DELETE FROM agent_executions WHERE is_root"))
        found = ledger(service)
        assert found["balanced"] is False
        assert (found["rows"]["unexplained"], [hour["rows"] for hour in found["hours"]]) == (0, [1])


def test_the_example_is_valid() -> None:
    LedgerAnswer.model_validate(openapi.LEDGER, extra="forbid")
