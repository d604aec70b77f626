from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from app.cli import spanledger, welcome
from app.data_dir import DataDir
from app.settings import Settings
from tests.app.service import NO_DATABASE, RUN, TOKEN, UVICORN, Service

BOTH = pytest.mark.parametrize("command", [RUN, UVICORN], ids=["run", "uvicorn"])


def test_the_version() -> None:
    result = CliRunner().invoke(spanledger, ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(r"spanledger \d+\.\d+\.\d+\n", result.output)


def test_the_welcome_names_the_token_file_and_never_the_token(tmp_path: Path) -> None:
    data_dir = tmp_path / "a b"
    text = welcome(Settings(spanledger_data_dir=data_dir, port=8123, admin_token=(), api_token=None))
    assert text.splitlines()[:4] == [
        "Spanledger is at http://127.0.0.1:8123",
        "  API docs     http://127.0.0.1:8123/docs",
        "  metrics      http://127.0.0.1:8123/metrics",
        f"  admin token  {data_dir}/admin-token",
    ]
    DataDir(data_dir).acquire().admin_token()
    token = (data_dir / "admin-token").read_text().strip()
    command = text.splitlines()[-1].replace("curl", "printf '%s\\n'")
    printed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [
        "-H",
        f"Authorization: Bearer {token}",
        "http://127.0.0.1:8123/api/admin/metrics?hours=24",
    ]


def test_the_welcome_with_tokens_of_ones_own() -> None:
    secret = SecretStr(TOKEN)
    text = welcome(Settings(host="::1", port=8123, admin_token=(secret,), api_token=secret))
    assert TOKEN not in text
    assert "http://[::1]:8123/docs" in text
    assert "admin token  ADMIN_TOKEN\n" in text
    assert '"Authorization: Bearer $ADMIN_TOKEN"' in text
    assert '"Authorization: Bearer $API_TOKEN"' in text


def test_a_taken_port_is_one_line_before_anything_is_made(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Service(data_dir, PORT=str(port)) as service:
            assert service.end() == (
                2,
                "",
                f"spanledger: cannot listen on 127.0.0.1 port {port} (Address already in use); "
                "stop what does, or set HOST and PORT to others\n",
            )
    assert not data_dir.exists()


@BOTH
def test_wrong_settings_are_a_line_each(command: tuple[str, ...], data_dir: Path) -> None:
    with Service(data_dir, *command, RETENTION_DAYS="0", LOG_LEVEL="loud") as service:
        assert service.end() == (
            2,
            "",
            "spanledger: RETENTION_DAYS must be a whole number, at least 1, at most 400\n"
            "spanledger: LOG_LEVEL has an unknown value; "
            "allowed: 'debug', 'info', 'warning', 'error' or 'critical'\n",
        )


@BOTH
def test_a_second_service_on_the_same_directory_is_refused(command: tuple[str, ...], data_dir: Path) -> None:
    directory = DataDir(data_dir).acquire()
    with Service(data_dir, *command, DATABASE_URL=NO_DATABASE, LOG_LEVEL="warning") as service:
        code, out, err = service.end()
    directory.release()
    assert (out, err) == (
        "",
        f"spanledger: another spanledger (pid {os.getpid()}) uses {data_dir}; "
        "stop it, or set SPANLEDGER_DATA_DIR elsewhere\n",
    )
    assert code == (2 if command == RUN else 3)  # uvicorn's own code for a failed start


def test_a_data_directory_of_another_postgres_is_refused(data_dir: Path) -> None:
    (data_dir / "postgres/data").mkdir(parents=True)
    (data_dir / "postgres/data/PG_VERSION").write_text("12\n")
    data_dir.chmod(0o711)
    with Service(data_dir) as service:
        code, out, err = service.end()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"spanledger: {data_dir}/postgres/data was made by Postgres 12")


def test_it_prints_what_to_open_and_ends_on_sigterm(data_dir: Path) -> None:
    with Service(data_dir, DATABASE_URL=NO_DATABASE) as service:
        service.ready("degraded")
        code, out, err = service.stop(signal.SIGTERM)
    assert code == -signal.SIGTERM
    assert out.startswith(f"Spanledger is at {service.url}\n")
    assert (data_dir / "admin-token").read_text().strip() not in out + err
