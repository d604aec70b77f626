"""`spanledger demo` as a user runs it, on the real service."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from app.demo import _fits
from tests.app.service import ROOT, Service, free_port
from tests.end_to_end.test_alerts import HOME


def demo(data_dir: Path, port: int, *arguments: str, **variables: str) -> tuple[int, str, str]:
    environment = {"PATH": "/usr/bin:/bin", "SPANLEDGER_DATA_DIR": str(data_dir), "PORT": str(port), **variables}
    command = [sys.executable, "-m", "app", "demo", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def table(output: str) -> dict[str, list[int]]:
    rows = re.findall(r"^(\w+) +(\d+) +(\d+) +(\d+)$", output, re.MULTILINE)
    return {status: list(map(int, counts)) for status, *counts in rows}


def test_what_was_asked_for_is_counted_and_stored(data_dir: Path) -> None:
    with Service(data_dir) as service:
        service.ready()
        code, output, errors = demo(data_dir, service.port, "--seconds", "5")
        assert (code, errors) == (0, ""), output
        counts = table(output)
        assert list(counts) == ["success", "failure", "timeout", "cancelled"]
        assert [row[1] for row in counts.values()] == [row[2] for row in counts.values()]  # counted = stored
        assert sum(row[0] for row in counts.values()) == sum(row[2] for row in counts.values())
        assert (counts["failure"][0], counts["timeout"][0]) == (counts["failure"][2], counts["timeout"][2])
        assert sum(row[0] for row in counts.values()) == pytest.approx(30, abs=3)
        assert "The three agree." in output


def test_a_broken_agent_without_prometheus_prints_the_runbook(data_dir: Path) -> None:
    with Service(data_dir) as service:
        service.ready()
        nobody = f"http://127.0.0.1:{free_port()}"
        arguments = ("--seconds", "1", "--break", "quiz")
        code, output, _ = demo(data_dir, service.port, *arguments, PROMETHEUS_URL=nobody)
        assert (code, "No Prometheus answers" in output) == (0, True)
        assert (HOME / "runbooks" / "SpanledgerAgentFailing.md").read_text() in output


def test_without_a_service_it_says_how_to_start_one(tmp_path: Path) -> None:
    (tmp_path / "admin-token").write_text("a" * 32)
    port = free_port()
    code, output, errors = demo(tmp_path, port)
    assert (code, output) == (2, "")
    assert re.fullmatch(rf"spanledger: no service at http://127.0.0.1:{port} \(.+\): start it .+`make run`\n", errors)


def test_an_agent_that_cannot_be_broken_is_refused(tmp_path: Path) -> None:
    code, _, errors = demo(tmp_path, 1, "--break", "chat")
    assert (code, "one of flashcard_generation, quiz, summary" in errors) == (2, True)


@pytest.mark.parametrize(
    ("stored", "fits"),
    [
        ({"success": 3, "timeout": 1, "cancelled": 2}, True),
        ({"success": 4, "timeout": 1, "cancelled": 1}, True),
        ({"success": 2, "timeout": 1, "cancelled": 3}, False),
        ({"success": 3, "timeout": 1, "cancelled": 1}, False),
        ({"success": 4, "cancelled": 2}, False),
    ],
)
def test_only_a_caller_who_left_too_late_is_excused(stored: dict[str, int], fits: bool) -> None:
    assert _fits(Counter(success=3, timeout=1, cancelled=2), Counter(stored)) == fits
