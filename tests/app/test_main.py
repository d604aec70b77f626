from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import text
from starlette.responses import StreamingResponse

from app import tracing
from app.database import Database
from app.main import create_app
from app.settings import Settings
from tests.app.service import NO_DATABASE, ROOT, RUN, SEED, TOKEN, UVICORN, Service
from tests.conftest import Server


def url_of(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


def log_lines(err: str) -> list[dict[str, Any]]:
    """Every line of stderr, which must be JSON."""
    return [json.loads(line) for line in err.splitlines()]


def eventually(question: Callable[[], object], seconds: float = 40) -> None:
    """Wait until the answer is true."""
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def exists(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def trace_backend() -> Iterator[tuple[str, list[Span]]]:
    """An OTLP server: its URL and the spans it was sent."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert (self.path, self.headers["x-key"]) == ("/v1/traces", "s t")
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in group.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", spans
        finally:
            server.shutdown()
            thread.join()


def test_one_server_span_a_request_and_the_token_nowhere(data_dir: Path, database: Database) -> None:
    other = TOKEN[::-1]
    with (
        trace_backend() as (endpoint, spans),
        Service(
            data_dir,
            DATABASE_URL=url_of(database),
            ADMIN_TOKEN=f"{TOKEN},{other}",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_HEADERS="x-key=s%20t",
            LOG_LEVEL="debug",
        ) as service,
    ):
        service.ready()
        result = service.ask()
        given = {"X-Request-ID": "r-1"}
        for path, status in [
            (f"/api/admin/metrics?hours=24&admin_token={TOKEN}", 200),
            (f"/api/admin/metrics?%61dmin_token={other}", 200),
            (f"/api/admin/metrics?hours=x&admin_token={TOKEN}", 422),
            (f"/api/admin/user-activity/=20&admin_token={TOKEN}", 403),
            (f"/nowhere?admin_token={TOKEN}", 404),
            (f"/metrics?admin_token={TOKEN}", 200),
            ("/healthz", 200),
        ]:
            answer = httpx.get(service.url + path, headers=given, timeout=30)
            assert (answer.status_code, answer.headers["x-request-id"]) == (status, "r-1"), answer.text
            assert TOKEN not in answer.text
        eventually(lambda: rows_of(database))
        code, out, err = service.stop()
    assert code == 130

    requests = sorted(
        (span.name, attributes(span)["url.path"], attributes(span)["http.response.status_code"])
        for span in spans
        if span.kind == Span.SPAN_KIND_SERVER
    )
    assert requests == [
        ("GET", "/nowhere", "404"),
        ("GET /api/admin/metrics", "/api/admin/metrics", "200"),
        ("GET /api/admin/metrics", "/api/admin/metrics", "200"),
        ("GET /api/admin/metrics", "/api/admin/metrics", "422"),
        (
            "GET /api/admin/user-activity/{user_id}",
            "/api/admin/user-activity/=20&admin_token=",
            "403",
        ),
        ("POST /api/ai/process-stream", "/api/ai/process-stream", "200"),
    ]
    http_spans = [span for span in spans if "http.request.method" in attributes(span)]
    assert len(http_spans) == len(requests)
    (stream,) = [span for span in http_spans if span.name.startswith("POST")]
    assert stream.trace_id.hex() == result["trace_id"]
    access = [line for line in log_lines(err) if line["logger"] == "uvicorn.access"]
    (line,) = [line for line in access if "process-stream" in line["message"]]
    assert (line["trace_id"], line["span_id"]) == (result["trace_id"], stream.span_id.hex())
    assert [line["message"].split('"')[1] for line in access if line.get("request_id") == "r-1"] == [
        "GET /api/admin/metrics?hours=24 HTTP/1.1",
        "GET /api/admin/metrics HTTP/1.1",
        "GET /api/admin/metrics?hours=x HTTP/1.1",
        "GET /api/admin/user-activity/%3D20%26admin_token%3D HTTP/1.1",
        "GET /nowhere HTTP/1.1",
        "GET /metrics HTTP/1.1",
        "GET /healthz HTTP/1.1",
    ]
    everything = out + err + "".join(map(str, spans)) + "".join(rows_of(database))
    assert TOKEN not in everything
    assert other not in everything


def attributes(span: Span) -> dict[str, str]:
    return {item.key: item.value.string_value or str(item.value.int_value) for item in span.attributes}


def rows_of(database: Database) -> list[str]:
    with database.connect("spanledger_admin") as connection:
        rows = [*connection.execute(text("SELECT e::text FROM agent_executions e")).scalars()]
        return [*rows, *connection.execute(text("SELECT s::text FROM execution_steps s")).scalars()]


@pytest.mark.anyio
@pytest.mark.parametrize("begun", [False, True])
async def test_an_error_of_ours_is_logged_once_with_the_ids_of_the_request(
    begun: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = create_app(Settings(spanledger_data_dir=tmp_path, log_level="info"))

    @app.get("/broken")
    async def broken() -> StreamingResponse:
        async def stream() -> AsyncIterator[str]:
            yield "begun"
            raise RuntimeError("boom")

        if begun:
            return StreamingResponse(stream())
        raise RuntimeError("boom")

    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    sent: list[Any] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/broken", "query_string": b"", "scheme": "http"}
    scope |= {"headers": [(b"x-request-id", b"r-1")], "server": ("test", 80), "http_version": "1.1"}
    with tracing.server_spans(app, provider):
        await app(scope, receive, send)

    (span,) = spans.get_finished_spans()
    assert span.context is not None
    trace_id = f"{span.context.trace_id:032x}"
    (line,) = log_lines(capsys.readouterr().err)
    assert line["message"] == "unhandled error in GET /broken"
    assert line["exception"].endswith("RuntimeError: boom")
    assert (line["trace_id"], line["request_id"]) == (trace_id, "r-1")
    if begun:
        assert [(message.get("status"), message.get("body")) for message in sent] == [
            (200, None),
            (None, b"begun"),
        ]
    else:
        assert sent[0]["status"] == 500
        assert json.loads(sent[1]["body"])["trace_id"] == trace_id


def test_ctrl_c_cuts_an_open_stream_off_and_keeps_its_row(data_dir: Path, database: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        model = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with Service(data_dir, DATABASE_URL=url_of(database), OPENAI_BASE_URL=model) as service:
            service.ready()
            with httpx.stream("POST", f"{service.url}/api/ai/process-stream", json=SEED, timeout=60) as stream:
                lines = stream.iter_lines()
                assert next(lines) == "event: progress"
                silent.accept()[0].detach()  # the model's server was asked and says nothing
                began = time.monotonic()
                service.process.send_signal(signal.SIGINT)
                code, _, err = service.end()
    assert (code, time.monotonic() - began < 25) == (130, True)
    with database.connect("spanledger_admin") as connection:
        statuses = connection.execute(text("SELECT DISTINCT status FROM agent_executions")).scalars().all()
    assert statuses == ["cancelled"], err


def test_kill_9_loses_nothing_and_ctrl_c_leaves_nothing_running(data_dir: Path) -> None:
    with Service(data_dir) as first:
        first.ready()
        trace_id = first.ask()["trace_id"]
        first.process.kill()
        first.end()
    with Service(data_dir) as second:
        second.ready()
        eventually(lambda: {row["trace_id"] for row in second.executions()} == {trace_id})
        server = second.database_pid()
        assert server is not None
        code, _, _ = second.stop()
        assert (code, second.database_pid(), exists(server)) == (130, None, False)
    with Service(data_dir) as third:
        third.ready()
        assert {row["trace_id"] for row in third.executions()} == {trace_id}


def test_without_its_database_it_runs_on_and_migrates_when_that_is_there(
    data_dir: Path, embedded_server: Server
) -> None:
    name = f"late_{os.getpid()}"
    url = embedded_server.url.set(database=name).render_as_string(hide_password=False)
    with Service(data_dir, DATABASE_URL=url) as service:
        service.ready("degraded")
        trace_id = service.ask()["trace_id"]
        embedded_server.execute(f"CREATE DATABASE {name}")
        try:
            service.ready()
            eventually(lambda: {row["trace_id"] for row in service.executions()} == {trace_id})
            _, _, err = service.stop()
        finally:
            embedded_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    waits = [line for line in log_lines(err) if line["logger"] == "app.upkeep"]
    assert waits
    assert f'database "{name}" does not exist' in waits[0]["message"]
    assert waits[0]["message"].startswith("rows wait in the spool, next try in 1 s: cannot use Postgres at ")
    assert "exception" not in waits[0]


@pytest.mark.parametrize("command", [RUN, UVICORN], ids=["run", "uvicorn"])
def test_both_ways_to_start_it_log_only_json(command: tuple[str, ...], data_dir: Path) -> None:
    with Service(data_dir, *command, DATABASE_URL=NO_DATABASE) as service:
        service.ready("degraded")
        code, _, err = service.stop()
    assert code == (130 if command == RUN else 0)
    assert {line["logger"] for line in log_lines(err)} >= {"app.upkeep", "uvicorn.access"}


def test_reloading_leaves_one_service_and_one_server(data_dir: Path, tmp_path: Path) -> None:
    for package in ("app", "telemetry", "migrations"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    with Service(data_dir, *UVICORN, "--reload", cwd=tmp_path) as service:
        service.ready()
        trace_id = service.ask()["trace_id"]
        owner = (data_dir / "lock").read_text()
        with (tmp_path / "app/problems.py").open("a") as source:
            source.write("# changed\n")
        eventually(lambda: (data_dir / "lock").read_text() not in ("", owner), 60)
        service.ready()
        assert {row["trace_id"] for row in service.executions()} == {trace_id}
        assert not exists(int(owner))
        server, owner = service.database_pid(), (data_dir / "lock").read_text()
        assert server is not None
        service.stop()
        assert (exists(int(owner)), exists(server)) == (False, False)


def test_a_plain_start_imports_nothing_heavy() -> None:
    script = (
        "import sys, uvicorn, app.cli, app.main, opentelemetry.instrumentation.fastapi\n"
        "app.main.create_app(app.main.Settings.load(None))\n"
        "print(*{'alembic', 'genai_prices', 'grpc', 'numpy', 'openai', 'requests'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_the_api_describes_itself(tmp_path: Path) -> None:
    paths = create_app(Settings(spanledger_data_dir=tmp_path)).openapi()["paths"]
    assert {
        "/api/ai/process-stream",
        "/api/admin/metrics",
        "/api/admin/errors",
        "/api/admin/user-activity/{user_id}",
        "/metrics",
    } <= set(paths)
