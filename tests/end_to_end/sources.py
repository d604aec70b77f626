"""The same ledger, read from each place that has it: spans, samples of Prometheus, rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sqlalchemy import Row, text

from app.database import Database
from tests.end_to_end.otlp import attributes
from tests.end_to_end.plan import UNATTRIBUTED, Ledger

CHAT, INVOKE_AGENT, EXECUTE_TOOL = "chat", "invoke_agent", "execute_tool"
CLASSES = ("input", "cache_read", "cache_write", "output", "reasoning")
USAGE = {
    "input": "input_tokens",
    "cache_read": "cache_read.input_tokens",
    "cache_write": "cache_write.input_tokens",
    "output": "output_tokens",
    "reasoning": "reasoning.output_tokens",
}
AGENT, MODEL, TOOL = "gen_ai_agent_name", "gen_ai_request_model", "gen_ai_tool_name"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass
class Book:
    """A ledger, and how long each agent's executions took in all, in seconds."""

    ledger: Ledger = field(default_factory=Ledger)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    seconds_by_status: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))


def of_spans(spans: list[Span]) -> Book:
    """From what a trace backend got. Spans have no price, so no cost: only what the provider stated."""
    book = Book()
    ledger = book.ledger
    known = {span.span_id: attributes(span) for span in spans}
    above = {span.span_id: span.parent_span_id for span in spans}
    operations = {span_id: str(found.get("gen_ai.operation.name", "")) for span_id, found in known.items()}
    covered = {above[span_id] for span_id, operation in operations.items() if operation == CHAT}

    def agent_above(span_id: bytes) -> bytes | None:
        parent = above[span_id]
        while parent in known and operations[parent] != INVOKE_AGENT:
            parent = above[parent]
        return parent if parent in known else None

    reported_below: dict[bytes, int] = defaultdict(int)
    agents: list[Span] = []
    for span in spans:
        span_id, found = span.span_id, known[span.span_id]
        operation, holder = operations[span_id], agent_above(span_id)
        agent = UNATTRIBUTED if holder is None else str(known[holder]["gen_ai.agent.name"])
        if operation == INVOKE_AGENT or (operation == CHAT and holder is None):
            name = str(found.get("gen_ai.agent.name", UNATTRIBUTED))
            status = _status(found)
            ledger.executions[name, status] += 1
            ledger.requests[name, status] += holder is None
            seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
            book.seconds[name] += seconds
            book.seconds_by_status[name, status] += seconds
        if operation == INVOKE_AGENT:
            agents.append(span)
        if operation == EXECUTE_TOOL:
            ledger.tools[agent, str(found["gen_ai.tool.name"])] += 1
        if operation == CHAT and span_id not in covered:
            model = str(found["gen_ai.request.model"])
            for kind, name in USAGE.items():
                if count := int(found.get(f"gen_ai.usage.{name}", 0)):
                    ledger.tokens[agent, model, kind] += count
            ledger.first_chunks[agent, model] += "gen_ai.response.time_to_first_chunk" in found
            while holder is not None:
                reported_below[holder] += int(found.get("gen_ai.usage.output_tokens", 0))
                holder = agent_above(holder)
    for span in agents:  # usage that only the agent's own span has
        found = known[span.span_id]
        if found.get("gen_ai.usage.output_tokens") and not reported_below[span.span_id]:
            key = str(found["gen_ai.agent.name"]), str(found["gen_ai.request.model"])
            for kind in ("input", "output"):
                ledger.tokens[*key, kind] += int(found[f"gen_ai.usage.{USAGE[kind]}"])
    return _without_zeros(book)


def _status(found: Mapping[str, Any]) -> str:
    """As the conventions have it: an error type, beside our attribute for what is no error."""
    stated = found.get("spanledger.execution.status")
    return str(stated or ("failure" if "error.type" in found else "success"))


def scrape(url: str) -> Samples:
    """Every sample of `/metrics` as OpenMetrics, through the reference parser."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = httpx.get(f"{url}/metrics", headers=accept, timeout=30).raise_for_status()
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = text_string_to_metric_families(answer.text)  # type: ignore[no-untyped-call]  # the library's own gap
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
        for family in families
        for sample in family.samples
    }


def of_prometheus(vector: Iterable[dict[str, Any]]) -> Samples:
    """The same from an instant query."""
    return {(series["metric"]["__name__"], _labels(series["metric"])): float(series["value"][1]) for series in vector}


def as_prometheus_has_them(samples: Samples) -> Samples:
    """Its labels: one without a value is none."""
    return {(name, _labels(dict(labels))): value for (name, labels), value in samples.items()}


def _labels(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    found = {name: text for name, text in labels.items() if text and name not in ("__name__", "job", "instance")}
    if "le" in found:
        found["le"] = str(float(found["le"]))
    return tuple(sorted(found.items()))


def of_samples(samples: Samples) -> Book:
    book = Book()
    ledger = book.ledger
    for (name, pairs), value in samples.items():
        labels = dict(pairs)
        agent, model = labels.get(AGENT, ""), labels.get(MODEL, "")
        match name:
            case "spanledger_executions_total":
                ledger.executions[agent, labels["status"]] += int(value)
            case "spanledger_requests_total":
                ledger.requests[agent, labels["status"]] += int(value)
            case "spanledger_tokens_total":
                ledger.tokens[agent, model, labels["gen_ai_token_type"]] += int(value)
            case "gen_ai_execute_tool_duration_seconds_count":
                ledger.tools[agent, labels[TOOL]] += int(value)
            case "gen_ai_client_operation_time_to_first_chunk_seconds_count":
                ledger.first_chunks[agent, model] += int(value)
            case "spanledger_cost_usd_total":
                ledger.add_cost(agent, model, value)
            case "spanledger_unpriced_tokens_total":
                ledger.unpriced[agent, model] += int(value)
            case "gen_ai_invoke_agent_duration_seconds_sum":
                book.seconds[agent] += value
    return _without_zeros(book)


def of_rows(database: Database) -> Book:
    """From SQL: executions from their table, usage from the steps, which are the truth."""
    book = Book()
    ledger = book.ledger
    for row in rows(database, "SELECT * FROM agent_executions"):
        ledger.executions[row.agent_name, row.status] += 1
        ledger.requests[row.agent_name, row.status] += row.is_root
        book.seconds[row.agent_name] += row.execution_time_ms / 1e3
        book.seconds_by_status[row.agent_name, row.status] += row.execution_time_ms / 1e3
    for row in rows(database, "SELECT * FROM execution_steps"):
        agent, model = row.agent_name or UNATTRIBUTED, row.request_model
        if row.operation == EXECUTE_TOOL:
            ledger.tools[agent, row.tool_name] += 1
        if row.time_to_first_chunk_ms is not None:
            ledger.first_chunks[agent, model] += 1
        if row.input_tokens is None:
            continue
        for kind in CLASSES:
            ledger.tokens[agent, model, kind] += getattr(row, f"{kind}_tokens")
        if row.cost_usd is None:
            ledger.unpriced[agent, model] += row.input_tokens + row.output_tokens
        else:
            ledger.add_cost(agent, model, row.cost_usd)
    return _without_zeros(book)


def rows(database: Database, query: str) -> list[Row[Any]]:
    with database.connect("spanledger_admin") as connection:
        return list(connection.execute(text(query)))


def three_sums(database: Database) -> tuple[Row[Any], Row[Any], Row[Any]]:
    """Tokens and cost: own over executions, totals over requests, over steps. And the classes where they exist."""
    (own,) = rows(
        database,
        "SELECT sum(tokens_used) AS tokens, sum(cost_usd) AS cost, sum(input_tokens) AS input,"
        " sum(cache_read_tokens) AS cache_read, sum(cache_write_tokens) AS cache_write,"
        " sum(output_tokens) AS output, sum(reasoning_tokens) AS reasoning FROM agent_executions",
    )
    (total,) = rows(
        database,
        "SELECT sum(tokens_total) AS tokens, sum(cost_total_usd) AS cost FROM agent_executions WHERE is_root",
    )
    (steps,) = rows(
        database,
        "SELECT sum(input_tokens + output_tokens) AS tokens, sum(cost_usd) AS cost, sum(input_tokens) AS input,"
        " sum(cache_read_tokens) AS cache_read, sum(cache_write_tokens) AS cache_write,"
        " sum(output_tokens) AS output, sum(reasoning_tokens) AS reasoning FROM execution_steps",
    )
    return own, total, steps


def admin_metrics(url: str, token: str) -> dict[str, Any]:
    """`GET /api/admin/metrics`, money as decimals."""
    answer = httpx.get(f"{url}/api/admin/metrics?hours=24", headers={"Authorization": f"Bearer {token}"}, timeout=30)
    body: dict[str, Any] = json.loads(answer.raise_for_status().content, parse_float=Decimal)
    assert body["status"] == "success"
    found: dict[str, Any] = body["metrics"]
    return found


def _without_zeros(book: Book) -> Book:
    for name, counts in vars(book.ledger).items():
        setattr(book.ledger, name, +counts)
    book.seconds = {agent: seconds for agent, seconds in book.seconds.items() if seconds}
    return book


def differences(found: Ledger, expected: Ledger) -> dict[str, dict[tuple[str, ...], tuple[int, int]]]:
    """What is not the same: found and expected by key."""
    wrong: dict[str, dict[tuple[str, ...], tuple[int, int]]] = {}
    for name, counts in vars(found).items():
        other = getattr(expected, name)
        for key in counts.keys() | other.keys():
            if counts[key] != other[key]:
                wrong.setdefault(name, {})[key] = (counts[key], other[key])
    return wrong


def families(registry: CollectorRegistry) -> dict[str, frozenset[str] | None]:
    """Name as PromQL has it (counters with `_total`) -> labels; None where a family has no series yet."""
    return {
        family.name + "_total" * (family.type == "counter"): frozenset(
            label for sample in family.samples for label in sample.labels if label != "le"
        )
        if family.samples
        else None
        for family in registry.collect()
    }
