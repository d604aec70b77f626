"""The root agent: it takes a request, hands it to the right agent and tells the caller how it ended."""

from __future__ import annotations

import logging

from telemetry import Run, bind

from .agents import Agents, monitor
from .engine import Engine
from .errors import AgentError
from .event import Emit, Error, Progress, Result
from .output import Output
from .request import AgentRequest

logger = logging.getLogger(__name__)


async def main_orchestrator(request: AgentRequest, engine: Engine, emit: Emit, *, timeout_seconds: float) -> None:
    """Answer `request` by events, the last of which is a `Result` or an `Error`; raises neither.

    The execution is over before the last event goes out, so whoever reads that finds the run counted.
    Cancelling the task cancels the agent: nothing more is emitted and the executions are `cancelled`.

    Args:
        timeout_seconds: The longest time one agent may take; then it is a `timeout`. A request may ask for less.
    """
    asked = request.options.timeout_seconds
    agents = Agents(engine, emit, timeout_seconds if asked is None else min(asked, timeout_seconds))
    with bind(user_id=request.user_id, session_id=request.session_id) as caller:
        try:
            with monitor.execution("main_orchestrator", version="1", input=request) as run:
                await emit(Progress(agent="main_orchestrator", message=f"routing to {request.type}"))
                run.output = output = await _route(request, agents)
        except Exception as error:
            await emit(_error(error, run, caller.request_id))
        else:
            await emit(_result(request, output, run, caller.request_id))


async def _route(request: AgentRequest, agents: Agents) -> Output:
    match request.type:
        case "flashcard_generation":
            return await agents.flashcard_generation(request)
        case "quiz":
            return await agents.quiz(request)
        case "summary":
            return await agents.summary(request)
        case "chat":
            return await agents.chat(request)


def _result(request: AgentRequest, output: Output, run: Run, request_id: str | None) -> Result:
    return Result(
        trace_id=run.trace_id,
        span_id=run.span_id,
        request_id=request_id,
        type=request.type,
        tokens=run.tokens_total,
        cost_usd=None if run.cost_total_usd is None else float(run.cost_total_usd),
        output=output,
    )


def _error(error: Exception, run: Run, request_id: str | None) -> Error:
    if isinstance(error, AgentError):
        message = str(error)
    else:
        logger.error("an agent failed unexpectedly", exc_info=error)
        message = f"Something went wrong inside the service. Its log and the trace {run.trace_id} say more."
    return Error(
        trace_id=run.trace_id,
        span_id=run.span_id,
        request_id=request_id,
        type=type(error).__name__,
        message=message,
    )
