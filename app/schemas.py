"""What the admin endpoints take and answer, as OpenAPI shows it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Status = Literal["success", "failure", "timeout", "cancelled", "crashed", "rejected"]
FAILED: tuple[Status, ...] = ("failure", "timeout", "crashed")
"""The statuses that count as failed; cancelled and rejected count neither way."""

TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def parse_time(text: object) -> datetime:
    """A time as RFC 3339 writes it, in UTC; digits beyond microseconds are cut off.

    A `+` that was not encoded as %2B arrives as a space: in front of the offset it can mean nothing else.
    """
    time = re.sub(r" (?=\d\d:\d\d$)", "+", str(text))
    try:
        if TIME.fullmatch(time):
            return datetime.fromisoformat(time.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError("not a time with its offset (RFC 3339), such as 2026-11-23T14:00:00Z")


def _split(value: object) -> object:
    """`?status=failure,timeout` as well as `?status=failure&status=timeout`."""
    if isinstance(value, list):
        return [part.strip() for item in value for part in str(item).split(",") if part.strip()]
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Time = Annotated[datetime, BeforeValidator(parse_time)]
Text = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")]  # Postgres text holds no NUL
TraceId = Annotated[str, BeforeValidator(_lower), Field(pattern=r"^[0-9a-f]{32}$")]
SpanId = Annotated[str, BeforeValidator(_lower), Field(pattern=r"^[0-9a-f]{16}$")]


class ExecutionFilters(BaseModel):
    """Which executions to list. A filter that is left out lets everything pass; a misspelt one is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: list[Text] = Field(default=[], description="Name of an agent; again for several.")
    status: Annotated[list[Status], BeforeValidator(_split)] = Field(
        default=[], description="Again, or separated by commas, for several.", examples=[["failure", "timeout"]]
    )
    user_id: Text | None = Field(default=None, description="Exactly as the agents were given it.")
    session_id: Text | None = Field(default=None, description="Has no index: give `from` and `to` with it.")
    request_id: Text | None = Field(default=None, description="Has no index: give `from` and `to` with it.")
    trace_id: TraceId | None = Field(default=None, description="32 hex digits, upper or lower case.")
    from_: Time | None = Field(
        default=None,
        alias="from",
        description="Ended at this time or later, RFC 3339.",
        examples=["2026-11-23T14:00:00Z"],
    )
    to: Time | None = Field(
        default=None, description="Ended before this time, RFC 3339.", examples=["2026-11-23T15:00:00Z"]
    )
    limit: int = Field(default=50, ge=1, le=500, description="Most rows of one page.")
    cursor: str | None = Field(
        default=None, max_length=1000, description="`next_cursor` of the previous page; the filters must be the same."
    )

    def fingerprint(self) -> str:
        """The same text for the same list, however long its pages are."""
        return self.model_dump_json(exclude={"limit", "cursor"})


class AgentMetrics(BaseModel):
    """One agent's executions, those inside other agents included."""

    count: int = Field(description="Successful and failed executions.")
    avg_time_ms: float | None = Field(description="Mean duration of those; null without any.")
    success_rate: float | None = Field(description="Successful ÷ count, 0 to 1; null without any.")
    total_tokens: int = Field(
        description="Tokens of all its executions and of the agents below them. Not to be added over agents."
    )
    own_tokens: int = Field(description="The same without the agents below; the sum over agents is the total.")
    cancelled: int
    rejected: int
    cost_usd: float | None = Field(description="Own cost as far as prices are known; null when none is.")


class Totals(BaseModel):
    """Requests (executions with no agent above them), and tokens and cost of every execution."""

    total_requests: int = Field(description="Successful + failed.")
    successful: int
    failed: int = Field(description="failure + timeout + crashed.")
    cancelled: int = Field(description="Beside the total, counts neither way.")
    rejected: int = Field(description="Beside the total, counts neither way.")
    success_rate: float | None = Field(description="successful ÷ total_requests, 0 to 1; null without any.")
    avg_execution_time_ms: float | None = Field(description="Mean of the total_requests; null without any.")
    total_tokens_used: int = Field(description="Own tokens of all executions of every status.")
    cost_usd: float | None = Field(description="Own cost of all executions as far as known; null when none is.")
    cost_complete: bool = Field(description="Every price was known; else the cost was more than cost_usd.")


class Metrics(Totals):
    agent_metrics: dict[str, AgentMetrics]


class MetricsAnswer(BaseModel):
    """The answer of `GET /api/admin/metrics`."""

    status: Literal["success"]
    metrics: Metrics


class ExecutionSummary(BaseModel):
    """One agent run: who, when, what, how it ended, and the ids that lead to the rest."""

    created_at: datetime = Field(description="When it ended.")
    agent_name: str
    status: Status
    error_type: str | None
    error_message: str | None
    user_id: str | None
    session_id: str | None
    request_id: str | None
    trace_id: str
    span_id: str
    parent_agent_span_id: str | None = Field(description="The execution that called this one.")
    is_root: bool = Field(description="No agent above it: this is a request.")
    service_name: str
    environment: str | None
    execution_time_ms: float
    tokens_used: int = Field(description="Own tokens, agents below not included.")
    tokens_total: int = Field(description="Tokens of the agents below included.")
    cost_usd: float | None = Field(description="Own cost; null when the price is not known.")
    model_used: str | None
    input_data: Any = Field(description="JSON as it was stored, shortened and redacted.")
    output_data: Any = Field(description="JSON as it was stored, shortened and redacted.")


class ErrorsAnswer(BaseModel):
    """The answer of `GET /api/admin/errors`."""

    status: Literal["success"]
    errors: list[ExecutionSummary]
    count: int = Field(description="Length of `errors`.")


class UserActivityAnswer(BaseModel):
    """The answer of `GET /api/admin/user-activity/{user_id}`."""

    status: Literal["success"]
    user_id: str
    summary: Totals = Field(description="The user's numbers over everything that is kept.")
    activity: list[ExecutionSummary]
    count: int = Field(description="Length of `activity`.")


class Identity(BaseModel):
    """The columns that executions and steps share."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    started_at: datetime
    created_at: datetime = Field(description="When it ended.")
    late: bool = Field(description="It ended after the execution above it; totals are settled afterwards.")
    status: Status
    user_id: str | None
    session_id: str | None
    request_id: str | None
    service_name: str
    service_namespace: str | None
    service_version: str | None
    environment: str | None
    instance_id: str | None
    time_to_first_chunk_ms: float | None
    provider: str | None
    cost_usd: float | None
    cost_source: str | None
    error_type: str | None
    error_message: str | None
    attributes: dict[str, Any]
    input_data: Any
    output_data: Any


class Execution(Identity):
    """A row of `agent_executions`, whole."""

    parent_agent_span_id: str | None
    is_root: bool
    agent_name: str
    agent_version: str | None
    execution_time_ms: float
    tokens_used: int
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    tokens_total: int
    model_used: str | None
    cost_total_usd: float | None


class Step(Identity):
    """A row of `execution_steps`, whole: a model call, a tool call or a retrieval."""

    agent_span_id: str | None = Field(description="The execution it belongs to.")
    operation: str
    agent_name: str | None
    duration_ms: float
    tool_name: str | None
    request_model: str | None
    response_model: str | None
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None


class ExecutionPage(BaseModel):
    """The answer of `GET /api/admin/executions`."""

    data: list[Execution]
    next_cursor: str | None = Field(description="For the next page; null on the last.")


class RejectedRow(BaseModel):
    """A row that was set aside: why, and which it is, as far as its line tells."""

    at: datetime = Field(description="When it was set aside.")
    table: Literal["executions", "steps"]
    reason: str = Field(description="`timestamp`, `data` or `constraint`.")
    detail: str = Field(description="What refused it, in its own words.")
    version: str = Field(description="Version of the line.")
    trace_id: str | None
    span_id: str | None
    agent_name: str | None
    created_at: str | None = Field(description="When it ended; as the line has it where that is no time.")


class RejectedPage(BaseModel):
    """The answer of `GET /api/admin/rejected`."""

    data: list[RejectedRow]
    next_cursor: str | None = Field(description="For the next page; null on the last.")


class ExecutionDetail(Execution):
    """The answer of `GET /api/admin/executions/{trace_id}/{span_id}`."""

    steps: list[Step] = Field(description="In order of their start, the first 1000.")
    children: list[ExecutionSummary] = Field(
        description="Executions it called, in order of their start, the first 1000."
    )
    truncated: bool = Field(description="There are more steps or children than shown.")


class OpenExecution(BaseModel):
    """An execution that runs now."""

    trace_id: str
    span_id: str
    parent_agent_span_id: str | None
    is_root: bool
    agent_name: str
    started_at: datetime
    age_seconds: float
    stuck: bool = Field(description="It has run for longer than STUCK_AFTER_SECONDS.")
    cancel_requested: bool = Field(description="Somebody asked it to end, and its process has not seen that yet.")
    user_id: str | None
    session_id: str | None
    request_id: str | None
    service_name: str
    environment: str | None
    instance_id: str | None
    host: str
    pid: int
    seen_at: datetime = Field(description="When its process last gave a sign of life.")
    input_data: Any = Field(description="Redacted; null also where it is longer than about 1.9 KB.")


class InFlightAnswer(BaseModel):
    """The answer of `GET /api/admin/in-flight`."""

    data: list[OpenExecution] = Field(description="The oldest first.")
    count: int = Field(description="Length of `data`.")
    stuck: int = Field(description="How many of them are stuck.")


class DoorAccount(BaseModel):
    """Executions: started = in_flight + ended, and ended = spooled + dropped + rejected."""

    started: int
    in_flight: int
    ended: int
    spooled: int = Field(description="Written to the spool.")
    dropped: int = Field(description="Lost: spanledger_rows_dropped_total says why.")
    rejected: int = Field(description="Set aside before the spool: too old, or of the future.")
    unexplained: int


class StoreAccount(BaseModel):
    """Rows of executions and steps: sealed = waiting + stored + duplicates + rejected."""

    sealed: int = Field(description="Handed to the sink, those found at the start included.")
    waiting: int = Field(description="In the spool.")
    stored: int
    duplicates: int = Field(description="Were stored before.")
    rejected: int = Field(description="Set aside: Postgres would not take them.")
    unexplained: int


class LedgerHour(BaseModel):
    """Executions that ended in an hour."""

    hour: datetime
    rolled_up: int = Field(description="As the roll-up has them.")
    rows: int = Field(description="Rows of agent_executions, counted.")


class LedgerAnswer(BaseModel):
    """The answer of `GET /api/admin/ledger`."""

    balanced: bool = Field(description="Nothing is unexplained, and each hour is the same in rows and roll-up.")
    executions: DoorAccount
    rows: StoreAccount
    hours: list[LedgerHour]
