"""`/api/admin/executions`: the raw log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from app import openapi, queries
from app.auth import NO_STORE, require_admin
from app.problems import Problem
from app.responses import ExactJSON
from app.routes.admin import Now
from app.schemas import ExecutionDetail, ExecutionFilters, ExecutionPage, SpanId, TraceId

router = APIRouter(prefix="/api/admin/executions", tags=["admin"], dependencies=[Depends(require_admin)])


@router.get(
    "",
    summary="Executions, page by page",
    response_model=ExecutionPage,
    responses=openapi.responses(openapi.EXECUTIONS, 400),
)
def executions(request: Request, now: Now, filters: Annotated[ExecutionFilters, Query()]) -> ExactJSON:
    """Every column of the executions that pass all filters, newest first.

    `from` and `to` compare `created_at`, when a run ended: `from` ≤ `created_at` < `to`. Without `from` the
    list goes back as far as rows are kept. To read on, send the same filters with `cursor` = `next_cursor`
    until that is null; executions that end meanwhile neither repeat nor displace rows.
    """
    since = queries.oldest(now, request.app.state.settings.retention_days)
    with queries.reading(request.app.state.database) as connection:
        page = queries.executions(connection, filters, since)
    return ExactJSON({"data": page.rows, "next_cursor": page.next_cursor})


@router.get(
    "/{trace_id}/{span_id}",
    summary="One execution with its steps",
    response_model=ExecutionDetail,
    responses=openapi.responses(openapi.EXECUTION, 404),
)
def execution(
    request: Request,
    trace_id: Annotated[TraceId, Path(description="32 hex digits.")],
    span_id: Annotated[SpanId, Path(description="16 hex digits.")],
) -> ExactJSON:
    """Every column, the steps inside (model calls, tool calls, retrievals) and the executions it called."""
    with queries.reading(request.app.state.database) as connection:
        found = queries.execution(connection, trace_id, span_id)
    if found is None:
        raise Problem(
            404,
            "Not Found",
            "No such execution is stored. One that ended within the last second may still be in the spool: "
            "try again. One that runs is stored when it ends. span_id must be an agent's, not a step's: "
            f"GET /api/admin/executions?trace_id={trace_id} lists what the trace has.",
            headers=NO_STORE,
        )
    return ExactJSON(found)
