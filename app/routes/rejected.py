"""`/api/admin/rejected`: rows that were set aside, and why."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from app import openapi
from app.auth import NO_STORE, require_admin
from app.problems import Problem
from app.responses import ExactJSON
from app.schemas import RejectedPage
from telemetry import Rejected

router = APIRouter(prefix="/api/admin/rejected", tags=["admin"], dependencies=[Depends(require_admin)])


@router.get(
    "",
    summary="Rows that were set aside",
    response_model=RejectedPage,
    responses=openapi.responses(openapi.REJECTED, 400),
)
def rejected(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=500, description="Most rows of a page.")] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=100)] = None,
) -> ExactJSON:
    """What neither processor nor Postgres would take, newest first, with the reason.

    The whole rows stay in `rejected.ndjson` of the spool; `spanledger replay-rejected` puts them back when their
    cause is gone. The database is not asked.
    """
    try:
        rows, next_cursor = Rejected(request.app.state.settings.spool_dir).page(limit, cursor)
    except ValueError:
        raise Problem(
            400,
            "Bad Request",
            "The cursor does not belong to this list, or its rows were put back. Leave it out to start anew.",
            headers=NO_STORE,
        ) from None
    return ExactJSON({"data": [_as_answered(row) for row in rows], "next_cursor": next_cursor})


def _as_answered(row: dict[str, Any]) -> dict[str, Any]:
    """With times as the other lists have them; a time that is none stays what it is."""
    ended = row["created_at"]
    try:
        ended = datetime.fromisoformat(ended or "").astimezone(UTC)
    except ValueError:
        pass
    return row | {"at": datetime.fromtimestamp(row["at"], UTC), "created_at": ended}
