"""`/api/admin/in-flight`: what runs now, in every process of this data directory, and how to end it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request

from app import openapi
from app.auth import NO_STORE, require_admin
from app.problems import Problem
from app.responses import ExactJSON, stored_json
from app.schemas import InFlightAnswer, SpanId, TraceId
from telemetry import OpenRun, cancel_run, open_runs

router = APIRouter(prefix="/api/admin/in-flight", tags=["admin"], dependencies=[Depends(require_admin)])


@router.get(
    "",
    summary="Executions that run now",
    response_model=InFlightAnswer,
    responses=openapi.responses(openapi.IN_FLIGHT),
)
def in_flight(request: Request) -> ExactJSON:
    """The oldest first. `stuck` are those that have run for longer than `STUCK_AFTER_SECONDS`.

    They are read from disk, not from Postgres. `seen_at` is when their process last gave a sign of life: every second.
    """
    now, settings = time.time_ns(), request.app.state.settings
    data = [_row(run, now, settings.stuck_after_seconds) for run in open_runs(settings.spool_dir)]
    return ExactJSON({"data": data, "count": len(data), "stuck": sum(row["stuck"] for row in data)})


@router.post(
    "/{trace_id}/{span_id}/cancel",
    status_code=202,
    summary="Cancel an execution that runs",
    responses=openapi.responses(openapi.CANCELLATION, 404, success=202),
)
def cancel(
    request: Request,
    trace_id: Annotated[TraceId, Path(description="32 hex digits.")],
    span_id: Annotated[SpanId, Path(description="16 hex digits.")],
) -> ExactJSON:
    """Ask the run to end, in whichever process it is. It does within about a second if it runs in an asyncio task,
    which is cancelled, with the request it serves; other code has to look at `current_run().cancel_requested`.
    """
    if not cancel_run(request.app.state.settings.spool_dir, trace_id, span_id):
        raise Problem(
            404,
            "Not Found",
            "No such execution runs here: it has ended, or GET /api/admin/in-flight lists another.",
            headers=NO_STORE,
        )
    return ExactJSON({"status": "cancel requested", "trace_id": trace_id, "span_id": span_id}, 202)


def _row(run: OpenRun, now: int, limit: float) -> dict[str, Any]:
    user_id, session_id, request_id = run.caller
    age = max(0, now - run.started_at) / 1e9
    return {
        "trace_id": run.trace_id,
        "span_id": run.span_id,
        "parent_agent_span_id": run.parent_agent_span_id,
        "is_root": run.parent_agent_span_id is None,
        "agent_name": run.agent_name,
        "started_at": _time(run.started_at),
        "age_seconds": round(age, 3),
        "stuck": age > limit,
        "cancel_requested": run.cancel_requested,
        "user_id": user_id,
        "session_id": session_id,
        "request_id": request_id,
        "service_name": run.service[0],
        "environment": run.service[3],
        "instance_id": run.service[4],
        "host": run.host,
        "pid": run.pid,
        "seen_at": _time(run.seen_at),
        "input_data": stored_json(run.input.decode("utf-8", "replace") if run.input is not None else None),
    }


def _time(nanoseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)
