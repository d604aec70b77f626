"""Requests as a trace backend and an intruder see them: one server span each, and the admin token nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.app.service import SEED, TOKEN, Service
from tests.conftest import memory_disk, reachable_directory
from tests.end_to_end import sources
from tests.end_to_end.otlp import TraceBackend, attributes, trace_backend
from tests.end_to_end.waiting import drained
from tests.openai_server import OpenAIServer

OTHER = "zyXWVutsrq9876543210ponmlkjihgfe"
CHUNKS = 300
SAMPLED, UNSAMPLED = "0af7651916cd43dd8448eb211c80319c", "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "b7ad6b7169203331"
CHAT = {**SEED, "type": "chat", "options": {"count": 1}}


class Done(NamedTuple):
    data_dir: Path
    backend: TraceBackend
    stream: str
    executions: list[dict[str, object]]
    logs: str
    answers: str
    samples: sources.Samples
    results: dict[str, dict[str, object]]
    tokens: int  # that the model's server reported, for the three runs


@pytest.fixture(scope="module")
def done() -> Iterator[Done]:
    """A long stream, one under a caller's sampled trace, one under an unsampled one; every way to give a token."""
    with ExitStack() as stack:
        data_dir = stack.enter_context(reachable_directory(memory_disk())) / "data"
        backend, model = stack.enter_context(trace_backend()), stack.enter_context(OpenAIServer())
        model.text = "word " * CHUNKS
        service = stack.enter_context(
            Service(
                data_dir,
                ADMIN_TOKEN=f"{TOKEN},{OTHER}",
                OPENAI_BASE_URL=model.base_url,
                OTEL_EXPORTER_OTLP_ENDPOINT=backend.url,
                OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="true",
                LOG_LEVEL="debug",
            )
        ).ready()
        client = stack.enter_context(httpx.Client(timeout=60))
        answers, results = [], {}
        for name, parent in (
            ("alone", None),
            ("sampled", f"00-{SAMPLED}-{CALLER}-01"),
            ("unsampled", f"00-{UNSAMPLED}-{CALLER}-00"),
        ):
            headers = {"X-Request-ID": name} | ({"traceparent": parent} if parent else {})
            answer = client.post(f"{service.url}/api/ai/process-stream", json=CHAT, headers=headers)
            answers.append(answer.text)
        drained(service)
        for path in ("metrics?hours=24", "errors?limit=10", "user-activity/u?limit=20", "executions?limit=500"):
            url = f"{service.url}/api/admin/{path}"
            results[path.partition("?")[0]] = client.get(url, params={"admin_token": TOKEN} | _query(url)).json()
            for token in (TOKEN, OTHER):
                for asked in (
                    client.get(f"{url}&admin_token={token}"),
                    client.get(f"{url}&Admin_Token={_percent(token)}"),
                    client.get(f"{url}&a%64min_token={token}"),
                    client.get(url, headers={"Authorization": f"Bearer {token}"}),
                    client.get(url, headers={"X-Admin-Token": token}),
                    client.get(f"{url}&nonsense=%zz&admin_token={token}"),
                    client.post(f"{url}&admin_token={token}"),
                    client.get(f"{service.url}/api/ai/process-stream?admin_token={token}"),
                    client.get(f"{service.url}/%FF?admin_token={token}&admin_token={token}"),
                    client.get(f"{service.url}/api/admin/executions/?admin_token={token}", follow_redirects=False),
                ):
                    answers.append(f"{asked.status_code} {asked.headers} {asked.text}")
        sources.admin_metrics(service.url, TOKEN)
        samples = sources.scrape(service.url)
        metrics = client.get(f"{service.url}/metrics?admin_token={TOKEN}").text
        rows = results["executions"]["data"]
        _, out, err = service.stop()
        tokens = model.usage.input_tokens + model.usage.output_tokens
        said = "".join(answers) + metrics
        yield Done(data_dir, backend, answers[0], rows, out + err, said, samples, results, tokens)


def _query(url: str) -> dict[str, str]:
    return dict(httpx.URL(url).params)


def _percent(text: str) -> str:
    return "".join(f"%{ord(character):02X}" for character in text)


def of_request(done: Done, request_id: str) -> tuple[str, list[Span]]:
    """The trace of a request, and all its exported spans."""
    (trace_id,) = {str(row["trace_id"]) for row in done.executions if row["request_id"] == request_id}
    return trace_id, [span for span in done.backend.spans if span.trace_id.hex() == trace_id]


@pytest.mark.parametrize("request_id", ["alone", "sampled"])
def test_one_server_span_a_request_above_the_orchestrator(done: Done, request_id: str) -> None:
    """Server, orchestrator, agent, model call: four spans in a line, however many chunks there were."""
    assert done.stream.count("event: partial") == CHUNKS
    trace_id, spans = of_request(done, request_id)
    server, orchestrator, agent, call = sorted(spans, key=lambda span: span.start_time_unix_nano)
    assert [span.kind for span in spans].count(Span.SPAN_KIND_SERVER) == 1
    assert (server.name, server.kind) == ("POST /api/ai/process-stream", Span.SPAN_KIND_SERVER)
    assert [span.name for span in (orchestrator, agent)] == ["invoke_agent main_orchestrator", "invoke_agent chat"]
    assert (call.name, call.kind) == ("chat gpt-4o-mini", Span.SPAN_KIND_CLIENT)
    parents = [span.parent_span_id for span in (orchestrator, agent, call)]
    assert parents == [span.span_id for span in (server, orchestrator, agent)]
    assert server.end_time_unix_nano >= orchestrator.end_time_unix_nano
    assert attributes(server)["http.response.status_code"] == 200
    expected = (SAMPLED, CALLER) if request_id == "sampled" else (trace_id, "")
    assert (trace_id, server.parent_span_id.hex()) == expected


def test_an_unsampled_caller_is_not_exported_but_counted_and_stored(done: Done) -> None:
    trace_id, spans = of_request(done, "unsampled")
    assert (trace_id, spans) == (UNSAMPLED, [])
    rows = {
        request: sorted(
            (str(row["agent_name"]), str(row["status"]), row["is_root"], row["tokens_total"])
            for row in done.executions
            if row["request_id"] == request
        )
        for request in ("alone", "sampled", "unsampled")
    }
    assert rows["unsampled"] == rows["sampled"] == rows["alone"]
    (agent, root) = rows["unsampled"]
    assert (agent[:3], root[:3]) == (("chat", "success", False), ("main_orchestrator", "success", True))
    assert agent[3] == root[3] == done.tokens // 3
    assert sources.of_samples(done.samples).ledger.executions == {
        ("main_orchestrator", "success"): 3,
        ("chat", "success"): 3,
    }
    metrics = done.results["metrics"]["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["total_requests"] == 3


def test_every_other_request_is_one_span_too(done: Done) -> None:
    """Nothing but server spans, and those of the three runs."""
    spans = [span for span in done.backend.spans if span.trace_id.hex() not in _traces(done)]
    assert len(spans) > 70
    assert {span.kind for span in spans} == {Span.SPAN_KIND_SERVER}
    assert len({span.trace_id for span in spans}) == len(spans)
    assert not any(re.search("/metrics$|healthz|readyz", attr) for attr in _paths(spans) if "admin" not in attr)


def _traces(done: Done) -> set[str]:
    return {str(row["trace_id"]) for row in done.executions}


def _paths(spans: list[Span]) -> list[str]:
    return [str(attributes(span)["url.path"]) for span in spans]


@pytest.mark.parametrize("token", [TOKEN, OTHER])
def test_the_admin_token_is_nowhere(done: Done, token: str) -> None:
    """Not in logs, spans, metrics, answers, nor in any file of the data directory: rows, indexes, WAL, spool."""
    assert done.logs.count("GET /api/admin/") > 50  # the access log was on
    wanted = [token.encode(), _percent(token).encode(), _percent(token).lower().encode()]
    places = {f"spans {number}": body for number, body in enumerate(done.backend.bodies)}
    places |= {"logs": done.logs.encode(), "answers": done.answers.encode()}
    files = {path: path.read_bytes() for path in done.data_dir.rglob("*") if path.is_file()}
    assert sum(map(len, files.values())) > 10_000_000
    for place, content in (*places.items(), *files.items()):
        assert not any(form in content for form in wanted), place


def test_the_search_would_find_a_token(done: Done) -> None:
    """What was asked for is in each of the places that are searched, so they are the right ones."""
    message = str(SEED["message"]).encode()
    files = b"".join(path.read_bytes() for path in done.data_dir.rglob("*") if path.is_file())
    assert message in files
    assert message in b"".join(done.backend.bodies)
    assert b"admin_token" not in b"".join(done.backend.bodies).replace(b"admin_token=&", b"")
