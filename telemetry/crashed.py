"""Crashed runs: the rows of those that were open when their process died."""

from __future__ import annotations

from .caller import Caller
from .execution import Execution, Identity, Service
from .semconv import Status
from .slots import OpenRun
from .usage import NONE

ERROR_TYPE = "process_died"


def crashed_line(run: OpenRun) -> bytes:
    """Its row, as the spool has it. It ended when its process gave its last sign of life, about a second before.

    Its usage is that of its steps, which are in the spool; `late`, so that the sink sums them up.
    """
    identity = Identity(
        run.trace_id,
        run.span_id,
        run.parent_span_id,
        run.started_at,
        run.seen_at,
        Status.CRASHED.value,
        ERROR_TYPE,
        f"process {run.pid} on {run.host} ended while the run was open",
        None,
        Caller(*run.caller),
        Service(run.service[0] or "", *run.service[1:]),
        b"{}",
    )
    above = run.parent_agent_span_id
    return Execution(
        *(identity, run.agent_name, run.agent_version, above, NONE, NONE, None, None, True, run.input, None)
    ).line()
