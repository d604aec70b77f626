"""What OpenAPI shows beside the schemas: an example of every answer and the problems an endpoint can have."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Any

from app.pagination import Position, encode
from app.problems import MEDIA_TYPE

SUMMARY: dict[str, Any] = {
    "created_at": "2026-11-23T14:00:02.250000Z",
    "agent_name": "flashcard_generation",
    "status": "timeout",
    "error_type": "TimeoutError",
    "error_message": "no answer within 120 s",
    "user_id": "18717267-0855-433c-b160-04c3443daa80",
    "session_id": None,
    "request_id": "9f8e7d6c5b4a39281706f5e4d3c2b1a0",
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "span_id": "b7ad6b7169203331",
    "parent_agent_span_id": "00f067aa0ba902b7",
    "is_root": False,
    "service_name": "spanledger",
    "environment": "production",
    "execution_time_ms": 120000.5,
    "tokens_used": 1020,
    "tokens_total": 1020,
    "cost_usd": 0.00345,
    "model_used": "gpt-4o",
    "input_data": {"count": 3, "content": "Python is a programming language"},
    "output_data": None,
}
_TOTALS = {
    "total_requests": 5,
    "successful": 4,
    "failed": 1,
    "cancelled": 0,
    "rejected": 0,
    "success_rate": 0.8,
    "avg_execution_time_ms": 2500.0,
    "total_tokens_used": 1500,
    "cost_usd": 0.0051,
    "cost_complete": True,
}
_AGENT = {
    "count": 5,
    "avg_time_ms": 2500.0,
    "success_rate": 0.8,
    "total_tokens": 1500,
    "own_tokens": 480,
    "cancelled": 0,
    "rejected": 0,
    "cost_usd": 0.00165,
}
_SHARED = {
    name: SUMMARY[name]
    for name in (
        *("trace_id", "span_id", "created_at", "status", "error_type", "error_message"),
        *("user_id", "session_id", "request_id", "service_name", "environment", "cost_usd"),
    )
} | {
    "parent_span_id": "00f067aa0ba902b7",
    "late": False,
    "started_at": "2026-11-23T13:58:02.249500Z",
    "service_namespace": None,
    "service_version": "0.1.0",
    "instance_id": "host-1",
    "time_to_first_chunk_ms": 310.25,
    "provider": "openai",
    "cost_source": "local",
    "attributes": {"spanledger.items.cards": 0},
    "input_data": SUMMARY["input_data"],
    "output_data": None,
    "cache_read_tokens": 400,
    "cache_write_tokens": 0,
    "reasoning_tokens": 0,
    "input_tokens": 900,
    "output_tokens": 120,
}
_EXECUTION = _SHARED | {
    "parent_agent_span_id": "00f067aa0ba902b7",
    "is_root": False,
    "agent_name": "flashcard_generation",
    "agent_version": "1",
    "execution_time_ms": 120000.5,
    "tokens_used": 1020,
    "tokens_total": 1020,
    "model_used": "gpt-4o",
    "cost_total_usd": 0.00345,
}
_STEP = _SHARED | {
    "span_id": "53995c3f42cd8ad8",
    "parent_span_id": "b7ad6b7169203331",
    "agent_span_id": "b7ad6b7169203331",
    "operation": "chat",
    "agent_name": "flashcard_generation",
    "duration_ms": 119990.0,
    "tool_name": None,
    "request_model": "gpt-4o",
    "response_model": "gpt-4o-2024-08-06",
    "attributes": {},
}
_POSITION = Position(datetime.fromisoformat(SUMMARY["created_at"]), SUMMARY["trace_id"], SUMMARY["span_id"])
METRICS: dict[str, Any] = {
    "status": "success",
    "metrics": _TOTALS | {"agent_metrics": {"main_orchestrator": _AGENT}},
}
ERRORS: dict[str, Any] = {"status": "success", "errors": [SUMMARY], "count": 1}
USER_ACTIVITY: dict[str, Any] = {
    "status": "success",
    "user_id": SUMMARY["user_id"],
    "summary": _TOTALS,
    "activity": [SUMMARY],
    "count": 1,
}
EXECUTIONS: dict[str, Any] = {"data": [_EXECUTION], "next_cursor": encode(_POSITION, "")}
EXECUTION: dict[str, Any] = _EXECUTION | {"steps": [_STEP], "children": [], "truncated": False}
REJECTED: dict[str, Any] = {
    "data": [
        {
            "at": "2026-11-23T14:00:03.104200Z",
            "table": "executions",
            "reason": "data",
            "detail": 'value "18446744073709551616" is out of range for type bigint',
            "version": "v1",
            **{name: _EXECUTION[name] for name in ("trace_id", "span_id", "agent_name", "created_at")},
        }
    ],
    "next_cursor": "1a2b-0",
}

IN_FLIGHT: dict[str, Any] = {
    "data": [
        {
            name: SUMMARY[name]
            for name in ("trace_id", "span_id", "parent_agent_span_id", "is_root", "agent_name", "service_name")
        }
        | {name: SUMMARY[name] for name in ("environment", "user_id", "session_id", "request_id", "input_data")}
        | {"started_at": "2026-11-23T13:58:02.249500Z", "age_seconds": 118.204, "stuck": False}
        | {"cancel_requested": False, "instance_id": "host-1", "host": "host", "pid": 4711}
        | {"seen_at": "2026-11-23T14:00:00.012345Z"}
    ],
    "count": 1,
    "stuck": 0,
}
CANCELLATION: dict[str, Any] = {
    "status": "cancel requested",
    "trace_id": SUMMARY["trace_id"],
    "span_id": SUMMARY["span_id"],
}
LEDGER: dict[str, Any] = {
    "balanced": True,
    "executions": {"started": 12, "in_flight": 2, "ended": 10, "spooled": 9, "dropped": 1, "rejected": 0}
    | {"unexplained": 0},
    "rows": {"sealed": 24, "waiting": 4, "stored": 20, "duplicates": 0, "rejected": 0, "unexplained": 0},
    "hours": [{"hour": "2026-11-23T14:00:00.000000Z", "rolled_up": 8, "rows": 8}],
}

_PROBLEMS = {
    400: "The cursor does not belong to this list.",
    403: "An admin token is needed.",
    404: "No such execution is stored, or runs.",
    422: "query.limit: Input should be less than or equal to 500",
    503: "The database cannot be read now.",
}
_PROBLEM_SCHEMA = {
    "type": "object",
    "description": "RFC 9457. `request_id` and `trace_id` lead to the log of the service.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong and what to do."},
    },
}


def responses(example: dict[str, Any], *problems: int, success: int = 200) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: its answer, and the problems that it, or every admin route, can have."""
    answers: dict[int | str, dict[str, Any]] = {success: {"content": {"application/json": {"example": example}}}}
    return answers | {status: _problem(status) for status in sorted({*problems, 403, 422, 503})}


def _problem(status: int) -> dict[str, Any]:
    title = HTTPStatus(status).phrase
    example = {"type": "about:blank", "title": title, "status": status, "detail": _PROBLEMS[status]}
    return {"description": title, "content": {MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA, "example": example}}}
