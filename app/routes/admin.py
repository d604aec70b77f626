"""`/api/admin`: the numbers, the errors, a user's activity."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from app import openapi, queries
from app.auth import require_admin
from app.responses import ExactJSON
from app.schemas import ErrorsAnswer, MetricsAnswer, Text, UserActivityAnswer

router = APIRouter(prefix="/api/admin", tags=["admin"], dependencies=[Depends(require_admin)])

Now = Annotated[datetime, Depends(queries.utc_now)]
Limit = Annotated[int, Query(ge=1, le=500, description="Most rows, the newest ones.")]


@router.get(
    "/metrics",
    summary="Numbers of the last hours",
    response_model=MetricsAnswer,
    responses=openapi.responses(openapi.METRICS),
)
def metrics(
    request: Request,
    now: Now,
    hours: Annotated[int, Query(ge=1, le=8760, description="Counts what ended within so many hours.")] = 24,
) -> ExactJSON:
    """Requests, success rate, mean time, tokens and cost, in total and for each agent.

    Cancelled and rejected requests stand beside the total. `success_rate` and the mean are null where there
    is nothing to divide by.
    """
    since = max(now - timedelta(hours=hours), _oldest(request, now))
    with queries.reading(request.app.state.database) as connection:
        found = queries.metrics(connection, since)
    return ExactJSON({"status": "success", "metrics": found})


@router.get(
    "/errors",
    summary="Recent errors",
    response_model=ErrorsAnswer,
    responses=openapi.responses(openapi.ERRORS),
)
def errors(request: Request, now: Now, limit: Limit = 10) -> ExactJSON:
    """The newest executions that ended as `failure`, `timeout` or `crashed`, nested ones included."""
    with queries.reading(request.app.state.database) as connection:
        found = queries.errors(connection, _oldest(request, now), limit)
    return ExactJSON({"status": "success", "errors": found, "count": len(found)})


@router.get(
    "/user-activity/{user_id}",
    summary="What a user's agents did",
    response_model=UserActivityAnswer,
    responses=openapi.responses(openapi.USER_ACTIVITY),
)
def user_activity(
    request: Request,
    now: Now,
    user_id: Annotated[Text, Path(description="Exactly as the agents were given it.")],
    limit: Limit = 20,
) -> ExactJSON:
    """The newest executions of a user, nested ones included, and the user's totals over everything kept.

    A user nobody has heard of has no activity: an empty list, not 404.
    """
    since = _oldest(request, now)
    with queries.reading(request.app.state.database) as connection:
        summary = queries.totals(connection, since, user_id)
        found = queries.user_activity(connection, user_id, since, limit)
    return ExactJSON(
        {"status": "success", "user_id": user_id, "summary": summary, "activity": found, "count": len(found)}
    )


def _oldest(request: Request, now: datetime) -> datetime:
    return queries.oldest(now, request.app.state.settings.retention_days)
