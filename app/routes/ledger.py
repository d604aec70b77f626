"""`/api/admin/ledger`: what came in, where it is now, and whether rows and roll-up have it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import text

from app import openapi, queries
from app.auth import require_admin
from app.responses import ExactJSON
from app.routes.admin import Now
from app.schemas import LedgerAnswer
from app.supervisor import ask
from telemetry import Drain, Telemetry

router = APIRouter(prefix="/api/admin/ledger", tags=["admin"], dependencies=[Depends(require_admin)])
private = APIRouter()
"""What a supervisor tells its workers, on a socket that nobody else reaches."""

HOURS = """
SELECT hour, coalesce(r.executions, 0) AS rolled_up, coalesce(e.executions, 0) AS rows
FROM (
    SELECT hour, sum(executions) AS executions FROM execution_rollup WHERE hour >= :since GROUP BY hour
) r FULL JOIN (
    SELECT date_trunc('hour', created_at, 'UTC') AS hour, count(*) AS executions
    FROM agent_executions WHERE created_at >= :since GROUP BY 1
) e USING (hour)
ORDER BY hour
"""


@router.get(
    "",
    summary="The loss ledger",
    response_model=LedgerAnswer,
    responses=openapi.responses(openapi.LEDGER),
)
def ledger(
    request: Request,
    now: Now,
    hours: Annotated[int, Query(ge=1, le=9600, description="How far back rows are counted.")] = 24,
) -> ExactJSON:
    """Since the service started: executions at the door, rows in the store, each with what is `unexplained`, and of the
    last hours what was stored, counted anew and by the roll-up.

    An execution that starts or ends, or a batch that is committed, while this is read may be unexplained for a moment.
    """
    supervisor: Path | None = request.app.state.supervisor
    telemetry: Telemetry = request.app.state.telemetry
    found = accounts(telemetry) if supervisor is None else orjson.loads(ask(supervisor, "/ledger").content)
    since = max(now - timedelta(hours=hours), queries.oldest(now, request.app.state.settings.retention_days))
    with queries.reading(request.app.state.database) as connection:
        rows = connection.execute(text(HOURS), {"since": since.replace(minute=0, second=0, microsecond=0)}).mappings()
        counted = [{**row, "rolled_up": int(row["rolled_up"])} for row in rows]
    agrees = all(hour["rolled_up"] == hour["rows"] for hour in counted)
    balanced = agrees and not (found["executions"]["unexplained"] or found["rows"]["unexplained"])
    return ExactJSON({"balanced": balanced, **found, "hours": counted})


@private.get("/ledger")
def of_all_workers(request: Request) -> dict[str, Any]:
    """The accounts of the supervisor, which has those of all workers."""
    return accounts(request.app.state.telemetry)


def accounts(telemetry: Telemetry | Drain) -> dict[str, Any]:
    """Both halves of the ledger."""
    door, store = telemetry.ledger()
    return {
        "executions": door._asdict() | {"unexplained": door.unexplained()},
        "rows": store._asdict() | {"unexplained": store.unexplained()},
    }
