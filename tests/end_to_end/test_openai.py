"""The service with a model: official client, official instrumentation, a server that speaks OpenAI's protocol.

The server adds up the usage it reported, and that is what must be found everywhere, priced by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from app.database import Database
from tests.app.service import SEED, TOKEN, Service
from tests.conftest import Server, reachable_directory
from tests.end_to_end import sources
from tests.end_to_end.otlp import TraceBackend, attributes, trace_backend
from tests.end_to_end.plan import Ledger
from tests.end_to_end.sources import Samples
from tests.end_to_end.waiting import drained
from tests.openai_server import Fault, OpenAIServer, ReportedUsage

MODEL = "gpt-5-nano"  # a price that holds for dated versions too, as in `gpt-5-nano-2026` of the server's answers
FRESH, CACHED, OUTPUT = Decimal("0.05"), Decimal("0.005"), Decimal("0.40")  # USD per million tokens, OpenAI's list
AGENTS = ("flashcard_generation", "quiz", "summary", "chat")
CONTENT = "Python is a programming language. It was made by Guido van Rossum. " * 10


class Done(NamedTuple):
    database: Database
    backend: TraceBackend
    usage: ReportedUsage
    results: list[dict[str, Any]]
    samples: Samples
    admin: dict[str, Any]


@pytest.fixture(scope="module")
def done(embedded_server: Server) -> Iterator[Done]:
    """Each agent twice, one answer that had to be repaired, one refused, one stream cut short."""
    with ExitStack() as stack:
        database = stack.enter_context(embedded_server.database())
        directory = stack.enter_context(reachable_directory())
        backend, model = stack.enter_context(trace_backend()), stack.enter_context(OpenAIServer())
        service = stack.enter_context(
            Service(
                directory / "data",
                ADMIN_TOKEN=TOKEN,
                DATABASE_URL=database.url.render_as_string(hide_password=False),
                OPENAI_BASE_URL=model.base_url,
                OPENAI_API_KEY="sk-test-0123456789abcdefghij",
                OPENAI_MODEL=MODEL,
                OTEL_EXPORTER_OTLP_ENDPOINT=backend.url,
            )
        ).ready()
        results = [service.ask(_body(agent)) for agent in AGENTS for _ in range(2)]
        for agent, fault in (
            ("flashcard_generation", Fault.INVALID_JSON),
            ("quiz", Fault.REFUSED),
            ("chat", Fault.CUT_SHORT),
        ):
            model.fail(fault)
            results.append(service.ask(_body(agent)))
        drained(service)
        samples = sources.scrape(service.url)
        found = sources.admin_metrics(service.url, TOKEN)
        service.stop()  # the last spans go out
        yield Done(database, backend, model.usage, results, samples, found)


def _body(agent: str) -> dict[str, Any]:
    return {**SEED, "type": agent, "options": {"count": 1, "content": CONTENT}}


def price(usage: ReportedUsage) -> Decimal:
    fresh = usage.input_tokens - usage.cache_read_tokens
    return (fresh * FRESH + usage.cache_read_tokens * CACHED + usage.output_tokens * OUTPUT) / 1_000_000


def tokens(ledger: Ledger) -> dict[str, int]:
    return {kind: ledger.total(kind) for kind in sources.CLASSES}


def reported(usage: ReportedUsage) -> dict[str, int]:
    return {
        "input": usage.input_tokens,
        "cache_read": usage.cache_read_tokens,
        "cache_write": 0,
        "output": usage.output_tokens,
        "reasoning": usage.reasoning_tokens,
    }


def test_the_server_reported_each_call(done: Done) -> None:
    """2 × 4 answers, the bad one and its repair; nothing for the refused and the cut one."""
    assert done.usage.requests == 10
    assert 0 < done.usage.cache_read_tokens < done.usage.input_tokens


def test_spans_metrics_and_rows_agree_with_the_server(done: Done) -> None:
    spans, metrics, stored = (
        sources.of_spans(done.backend.spans),
        sources.of_samples(done.samples),
        sources.of_rows(done.database),
    )
    for book in (spans, metrics, stored):
        assert tokens(book.ledger) == reported(done.usage)
    assert sources.differences(metrics.ledger, stored.ledger) == {}
    assert spans.ledger.executions == metrics.ledger.executions == stored.ledger.executions
    assert stored.ledger.executions == {
        ("main_orchestrator", "success"): 9,
        ("main_orchestrator", "failure"): 2,
        ("flashcard_generation", "success"): 3,
        ("quiz", "success"): 2,
        ("quiz", "failure"): 1,
        ("summary", "success"): 2,
        ("chat", "success"): 2,
        ("chat", "failure"): 1,
    }
    assert metrics.seconds == pytest.approx(stored.seconds, rel=1e-9)
    assert metrics.seconds == pytest.approx(spans.seconds, rel=1e-9)


def test_the_three_sums(done: Done) -> None:
    own, total, steps = sources.three_sums(done.database)
    consumed = done.usage.input_tokens + done.usage.output_tokens
    assert (own.tokens, total.tokens, steps.tokens) == (consumed, consumed, consumed)
    assert {kind: int(getattr(own, kind)) for kind in sources.CLASSES} == reported(done.usage)


def test_the_admin_endpoint(done: Done) -> None:
    assert done.admin["total_tokens_used"] == done.usage.input_tokens + done.usage.output_tokens
    numbers = ("total_requests", "successful", "failed", "cancelled")
    assert [done.admin[name] for name in numbers] == [11, 9, 2, 0]


def test_the_cost_is_that_of_the_price_list(done: Done) -> None:
    own, total, steps = sources.three_sums(done.database)
    assert (own.cost, total.cost, steps.cost, done.admin["cost_usd"]) == (price(done.usage),) * 4
    assert done.admin["cost_complete"] is True
    pico = round(price(done.usage) * 10**12)
    assert sources.of_samples(done.samples).ledger.cost.total() == pico
    assert sources.of_samples(done.samples).ledger.unpriced == {}


def test_each_caller_was_told_its_tokens_and_cost(done: Done) -> None:
    answers = [result for result in done.results if "output" in result]
    assert sum(answer["tokens"] for answer in answers) == done.usage.input_tokens + done.usage.output_tokens
    told = sum(Decimal(str(answer["cost_usd"] or 0)) for answer in answers)
    assert told == price(done.usage)


def test_streams_have_a_first_chunk_and_one_span_a_call(done: Done) -> None:
    """12 calls, each one span of the official instrumentation below its agent; five of them streams."""
    chats = [span for span in done.backend.spans if attributes(span).get("gen_ai.operation.name") == "chat"]
    assert len(chats) == 12
    assert {attributes(span)["gen_ai.provider.name"] for span in chats} == {"openai"}
    streams = sources.rows(
        done.database,
        "SELECT agent_name FROM execution_steps WHERE time_to_first_chunk_ms > 0 ORDER BY agent_name",
    )
    assert [row.agent_name for row in streams] == ["chat", "chat", "chat", "summary", "summary"]


def test_the_key_is_nowhere(done: Done) -> None:
    stored = "".join(str(row) for row in sources.rows(done.database, "SELECT e::text FROM agent_executions e"))
    assert "sk-test-0123456789" not in stored + b"".join(done.backend.bodies).decode("latin-1")
