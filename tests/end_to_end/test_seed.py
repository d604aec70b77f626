"""The requests of the seed document, exactly as written there, against a service as `make run` starts it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from tests.app.service import SEED, TOKEN, Service
from tests.conftest import memory_disk, reachable_directory
from tests.end_to_end.waiting import drained

USER = "18717267-0855-433c-b160-04c3443daa80"
# What `ConvertTo-Json` makes of the document's $body: Windows PowerShell 5.1 with its wide indentation and two
# spaces after a colon, PowerShell 7 with two spaces of indentation; both with CRLF on Windows.
POWERSHELL_5 = """{
    "message":  "Create flashcards about Python",
    "options":  {
                    "difficulty":  "medium",
                    "content":  "Python is a programming language",
                    "count":  3
                },
    "user_id":  "18717267-0855-433c-b160-04c3443daa80",
    "type":  "flashcard_generation"
}"""
POWERSHELL_7 = json.dumps(SEED, indent=2)
INPUT = -(-len("Create flashcards about Python") // 4) + -(-len("Python is a programming language") // 4)


class Asked(NamedTuple):
    """A service that has had four requests that went well and one that failed, and what it answered."""

    url: str  # with localhost, as the document has it
    results: list[dict[str, Any]]
    error: dict[str, Any]

    def get(self, path: str) -> Any:
        """`Invoke-WebRequest -Uri "…&admin_token=$adminToken" | Select-Object -Expand Content`."""
        answer = httpx.get(f"{self.url}{path}&admin_token={TOKEN}", timeout=30)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store"), answer.text
        return answer.json()


def post(url: str, body: bytes, content_type: str = "application/json") -> httpx.Response:
    headers = {"Content-Type": content_type, "User-Agent": "Mozilla/5.0 (Windows NT) WindowsPowerShell/5.1"}
    return httpx.post(f"{url}/api/ai/process-stream", content=body, headers=headers, timeout=30)


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.replace("\r\n", "\n").strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields["event"], json.loads(fields["data"])))
    return found


def result(answer: httpx.Response) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    name, data = events(answer.text)[-1]
    assert name == "result", data
    return data


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    with reachable_directory(memory_disk()) as directory, Service(directory / "data", ADMIN_TOKEN=TOKEN) as service:
        service.ready()
        url = f"http://localhost:{service.port}"
        windows = [text.replace("\n", "\r\n") for text in (POWERSHELL_5, POWERSHELL_7)]
        bodies = [POWERSHELL_5, *windows, json.dumps(SEED)]
        results = [result(post(url, body.encode())) for body in bodies]
        empty = {**SEED, "options": {"count": 3, "difficulty": "medium", "content": " "}}
        ((name, error),) = events(post(url, json.dumps(empty).encode()).text)[-1:]
        assert name == "error"
        drained(service)
        yield Asked(url, results, error)


def tokens(answer: dict[str, Any]) -> int:
    """By the local engine's documented rule: UTF-8 bytes / 4, rounded up, of each card as JSON."""
    cards = [json.dumps(card, separators=(",", ":"), ensure_ascii=False) for card in answer["output"]["cards"]]
    return INPUT + sum(-(-len(card.encode()) // 4) for card in cards)


def test_1_generate_some_activity(asked: Asked) -> None:
    for answer in asked.results:
        assert answer["output"]["cards"], answer
        assert answer["tokens"] == tokens(answer) > INPUT
        assert (answer["type"], answer["cost_usd"]) == ("flashcard_generation", 0.0)
    assert len({answer["trace_id"] for answer in asked.results}) == 4


def test_2_check_system_metrics(asked: Asked) -> None:
    """The numbers of the document's "Expected Response": 5 requests, 4 successful, 1 failed, 0.8."""
    body = asked.get("/api/admin/metrics?hours=24")
    activity = asked.get(f"/api/admin/user-activity/{USER}?limit=20")["activity"]
    times = {
        agent: [run["execution_time_ms"] for run in activity if run["agent_name"] == agent]
        for agent in ("main_orchestrator", "flashcard_generation")
    }
    mean = {agent: sum(runs) / 5 for agent, runs in times.items()}
    total = sum(map(tokens, asked.results))
    metrics = body["metrics"]
    assert body["status"] == "success"
    documented = ("total_requests", "successful", "failed", "success_rate", "total_tokens_used")
    assert [metrics[name] for name in documented] == [5, 4, 1, 0.8, total]
    assert metrics["avg_execution_time_ms"] == pytest.approx(mean["main_orchestrator"])
    assert set(metrics["agent_metrics"]) == {"main_orchestrator", "flashcard_generation"}
    for agent, own in (("main_orchestrator", 0), ("flashcard_generation", total)):
        numbers = metrics["agent_metrics"][agent]
        assert numbers["avg_time_ms"] == pytest.approx(mean[agent])
        found = [numbers[name] for name in ("count", "success_rate", "total_tokens", "own_tokens")]
        assert found == [5, 0.8, total, own]


def test_3_check_recent_errors(asked: Asked) -> None:
    body = asked.get("/api/admin/errors?limit=10")
    assert (body["status"], body["count"], len(body["errors"])) == ("success", 2, 2)
    for row in body["errors"]:
        assert (row["trace_id"], row["status"], row["user_id"]) == (asked.error["trace_id"], "failure", USER)
        assert (row["error_type"], row["error_message"]) == (asked.error["type"], asked.error["message"])
    assert {row["agent_name"] for row in body["errors"]} == {"main_orchestrator", "flashcard_generation"}


def test_4_check_user_activity(asked: Asked) -> None:
    """Everything the document lists under "What Gets Logged"."""
    body = asked.get(f"/api/admin/user-activity/{USER}?limit=20")
    assert (body["status"], body["user_id"], body["count"], len(body["activity"])) == ("success", USER, 10, 10)
    last = asked.results[-1]
    (run,) = [
        row
        for row in body["activity"]
        if row["trace_id"] == last["trace_id"] and row["agent_name"] == "flashcard_generation"
    ]
    logged = ("user_id", "session_id", "agent_name", "tokens_used", "model_used", "status", "error_message")
    assert {name: run[name] for name in logged} == {
        "user_id": USER,
        "session_id": None,
        "agent_name": "flashcard_generation",
        "tokens_used": tokens(last),
        "model_used": "extractive-1",
        "status": "success",
        "error_message": None,
    }
    assert (run["request_id"], run["output_data"]) == (last["request_id"], last["output"])
    assert run["input_data"]["message"] == SEED["message"]
    assert run["execution_time_ms"] > 0
    assert run["created_at"].endswith("Z")
    newest_first = [row["created_at"] for row in body["activity"]]
    assert newest_first == sorted(newest_first, reverse=True)


@pytest.mark.parametrize("token", ["", "your-admin-token-here", TOKEN[:-1]])
@pytest.mark.parametrize("path", ["metrics?hours=24", "errors?limit=10", f"user-activity/{USER}?limit=20"])
def test_a_wrong_token_is_403_as_the_document_says(asked: Asked, path: str, token: str) -> None:
    answer = httpx.get(f"{asked.url}/api/admin/{path}&admin_token={token}")
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")


def test_powershell_sends_latin_1(asked: Asked) -> None:
    """Windows PowerShell 5.1 encodes -Body as ISO-8859-1: refused with what to do, never as mojibake."""
    body = json.dumps({**SEED, "message": "Über Größen"}, ensure_ascii=False)
    answer = post(asked.url, body.encode("latin-1"))
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert "UTF-8" in problem["detail"]
    assert result(post(asked.url, body.encode(), "application/json; charset=utf-8"))["output"]["cards"]


def test_a_byte_order_mark_is_no_obstacle_or_a_clear_one(asked: Asked) -> None:
    answer = post(asked.url, b"\xef\xbb\xbf" + POWERSHELL_5.encode())
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert answer.headers["content-type"] == "application/problem+json"


def test_curl(asked: Asked) -> None:
    """The same from a shell, by the real curl."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl on this machine")

    def run(*arguments: str) -> str:
        command = [curl, "--silent", "--show-error", "--fail-with-body", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

    json_type = ("-H", "Content-Type: application/json")
    streamed = run("-N", f"{asked.url}/api/ai/process-stream", *json_type, "-d", POWERSHELL_5)
    names = [name for name, _ in events(streamed)]
    assert (names[0], names[-1]) == ("progress", "result")
    for path in ("metrics?hours=24", "errors?limit=10", f"user-activity/{USER}?limit=20"):
        url = f"{asked.url}/api/admin/{path}"
        by_query = json.loads(run(f"{url}&admin_token={TOKEN}"))
        by_header = json.loads(run(url, "-H", f"Authorization: Bearer {TOKEN}"))
        assert by_query["status"] == by_header["status"] == "success"
