"""`spanledger drain`, as the process it is: agents elsewhere, their rows and metrics here."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest

from app import drain, main
from app.database import Database
from app.settings import Settings, SettingsError
from telemetry.spool import EXECUTIONS
from tests.app.service import NO_DATABASE, ROOT, Service
from tests.end_to_end.waiting import eventually
from tests.telemetry.stored import rows

DRAIN = ("-m", "app", "drain")
SAMPLE = (
    'spanledger_executions_total{{deployment_environment_name="",gen_ai_agent_name="report",'
    'service_name="cron",status="{status}"}} '
)


def run_job(data_dir: Path) -> None:
    """An agent of another process: it has no database, and is gone at once."""
    program = """
        import os, sys
        from pathlib import Path
        from opentelemetry.sdk.resources import Resource
        from telemetry import AgentMonitor, configure

        configure(spool_dir=Path(sys.argv[1]), resource=Resource({"service.name": "cron"}))
        with AgentMonitor().execution("report"):
            pass
        os._exit(0)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(data_dir / "spool")]
    subprocess.run(command, cwd=ROOT, timeout=60, check=True)


def counted(service: Service, status: str = "success") -> float:
    lines = httpx.get(f"{service.url}/metrics", timeout=10).text.splitlines()
    sample = SAMPLE.format(status=status)
    return sum(float(line.removeprefix(sample)) for line in lines if line.startswith(sample))


def test_jobs_are_stored_counted_and_drained_at_the_end(database: Database, data_dir: Path) -> None:
    url = database.url.render_as_string(hide_password=False)
    run_job(data_dir)  # before the drain is there
    with Service(data_dir, *DRAIN, DATABASE_URL=url, LOG_LEVEL="warning") as process:
        process.ready()
        run_job(data_dir)
        eventually(lambda: counted(process) == 2)
        assert counted(process, "failure") == 0
        assert [row["agent_name"] for row in rows(database, EXECUTIONS)] == ["report", "report"]
        doors = [
            httpx.get(f"{process.url}{path}", timeout=10).status_code for path in ("/healthz", "/api/admin/metrics")
        ]
        assert doors == [200, 404]
        run_job(data_dir)
        code, out, err = process.stop(signal.SIGTERM)
    assert (code, err) == (-signal.SIGTERM, "")
    assert out == f"Draining {data_dir}/spool; metrics at {process.url}/metrics\n"
    assert len(rows(database, EXECUTIONS)) == 3
    left = [path.name for path in (data_dir / "spool").rglob("*.v1.*")]
    assert left == []


def test_postgres_away_is_degraded_and_rows_wait(data_dir: Path) -> None:
    run_job(data_dir)
    with Service(data_dir, *DRAIN, DATABASE_URL=NO_DATABASE) as process:
        process.ready("degraded")
        assert counted(process) == 0
        process.stop(signal.SIGTERM)
    assert len(list((data_dir / "spool").glob("*/*.v1.executions"))) == 1


def test_it_does_not_share_a_data_directory_with_a_service(database: Database, data_dir: Path) -> None:
    """That service stores the rows already, and counts its own."""
    url = database.url.render_as_string(hide_password=False)
    with Service(data_dir, DATABASE_URL=url) as service:
        service.ready()
        with Service(data_dir, *DRAIN, DATABASE_URL=url) as process:
            assert process.end() == (
                2,
                "",
                f"spanledger: another spanledger (pid {service.process.pid}) uses {data_dir}; "
                "stop it, or set SPANLEDGER_DATA_DIR elsewhere\n",
            )


def test_only_agents_behind_an_open_door_need_a_token() -> None:
    settings = Settings(host="0.0.0.0", api_token=None)
    with pytest.raises(SettingsError, match="API_TOKEN must be set"):
        main.create_app(settings)
    drain.create_app(settings)
