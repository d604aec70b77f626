"""The overview: is it working, how fast, what does it cost, do the rows get through."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models.dashboard import Dashboard, DashboardCursorSync, VariableOption, VariableRefresh

from grafana.panels import PROMETHEUS, Sql, now, promql, stat_panel, table_panel, thresholds, time_panel

SERVICE = 'service_name="$service_name"'
AGENT = f'{SERVICE},gen_ai_agent_name=~"$agent"'
COUNTED = 'status=~"success|failure|timeout|crashed"'
FAILED = 'status=~"failure|timeout|crashed"'
ROWS = "FROM grafana_executions WHERE service_name = ${service_name:sqlstring}"
ENDED = "status IN ('success', 'failure', 'timeout', 'crashed')"
LAST_DAY = f"{ROWS} AND created_at > now() - interval '24 hours'"
SEND = "No requests yet: send one"
STORED = "No rows: see the row Pipeline"
SCRAPE = "No data: is Prometheus scraping?"


def overview() -> Dashboard:
    """The dashboard, top to bottom."""
    board = dashboard.Dashboard("Spanledger overview").uid("spanledger-overview").tags(["spanledger"]).readonly()
    board.refresh("10s").time("now-1h", "now").timezone("browser").tooltip(DashboardCursorSync.CROSSHAIR)
    _variables(board)
    _numbers(board)
    _requests(board)
    _agents(board)
    _pipeline(board)
    built = board.build()
    for number, panel in enumerate(built.panels or [], 1):
        panel.id_val = number
    return built


def _variables(board: dashboard.Dashboard) -> None:
    service = dashboard.QueryVariable("service_name").label("Service")
    service.query("label_values(spanledger_executions_total, service_name)")
    agent = dashboard.QueryVariable("agent").label("Agent").multi(True).include_all(True).all_value(".*")
    agent.query(f"label_values(spanledger_executions_total{{{SERVICE}}}, gen_ai_agent_name)")
    agent.current(VariableOption(selected=True, text="All", value="$__all"))
    for variable in (service, agent):
        board.with_variable(variable.datasource(PROMETHEUS).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED))


def _numbers(board: dashboard.Dashboard) -> None:
    requests = f"sum(rate(spanledger_requests_total{{{AGENT},{COUNTED}}}[$__rate_interval]))"
    success = f'sum(rate(spanledger_requests_total{{{AGENT},status="success"}}[$__range]))'
    ended = f"sum(rate(spanledger_requests_total{{{AGENT},{COUNTED}}}[$__range]))"
    slow = f"sum by (le) (rate(gen_ai_invoke_agent_duration_seconds_bucket{{{AGENT}}}[$__range]))"
    firing = 'count(ALERTS{alertname=~"Spanledger.*",alertstate="firing"}) or vector(0)'
    for panel in (
        stat_panel("Requests", "Requests that ended, per minute.", "reqpm", SEND, promql(f"60 * {requests}")),
        stat_panel(
            "Success rate", "Share of the requests that succeeded.", "percentunit", SEND,
            now(f"{success} / ({ended} > 0)"),
        ).thresholds(thresholds((None, "failure"), (0.95, "timeout"), (0.99, "success"))),
        stat_panel(
            "Duration, p95", "95 of 100 executions were faster.", "s", SEND,
            now(f"histogram_quantile(0.95, {slow}) > 0"),
        ),
        stat_panel(
            "Cost, 24 h", "Known cost of the last 24 hours.", "currencyUSD", STORED,
            Sql(f"SELECT coalesce(sum(cost_usd), 0) AS cost {LAST_DAY}"),
        ),
        stat_panel(
            "Tokens, 24 h", "Input and output tokens of the last 24 hours.", "short", STORED,
            Sql(f"SELECT coalesce(sum(tokens_used), 0) AS tokens {LAST_DAY}"),
        ),
        stat_panel("Alerts firing", "Alerts of Spanledger that fire now.", "short", SCRAPE, now(firing)).thresholds(
            thresholds((None, "success"), (1, "failure"))
        ),
    ):  # fmt: skip
        board.with_panel(panel)


def _requests(board: dashboard.Dashboard) -> None:
    by_status = f"60 * sum by (status) (rate(spanledger_requests_total{{{AGENT}}}[$__rate_interval]))"
    buckets = f"sum by (le) (rate(gen_ai_invoke_agent_duration_seconds_bucket{{{AGENT}}}[$__rate_interval]))"
    quantiles = [
        promql(f"histogram_quantile({share}, {buckets})", name, name, exemplars=True)
        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    ]
    rate = "sum by (gen_ai_agent_name) (rate(spanledger_executions_total{%s,%s}[$__rate_interval]))"
    failing = f"{rate % (AGENT, FAILED)} / {rate % (AGENT, COUNTED)}"
    tokens = f'spanledger_tokens_total{{{AGENT},gen_ai_token_type=~"input|output"}}'
    by_model = f"60 * sum by (gen_ai_request_model) (rate({tokens}[$__rate_interval]))"
    flying = f"sum by (gen_ai_agent_name) (spanledger_executions_in_flight{{{AGENT}}})"
    agent = "{{gen_ai_agent_name}}"
    for panel in (
        time_panel("Requests by status", "Requests per minute.", "reqpm", SEND, promql(by_status, "{{status}}")),
        time_panel("Duration", "How long executions take; a dot is one trace.", "s", SEND, *quantiles),
        time_panel(
            "Failure ratio", "Share of each agent's executions that failed.", "percentunit", SEND,
            promql(failing, agent),
        ),
        time_panel(
            "Tokens by model", "Input and output tokens per minute.", "short", SEND,
            promql(by_model, "{{gen_ai_request_model}}"), width=12,
        ),
        time_panel("In flight", "Executions that run now.", "short", SEND, promql(flying, agent), width=12),
    ):  # fmt: skip
        board.with_panel(panel)


def _agents(board: dashboard.Dashboard) -> None:
    agents = f"""
        SELECT agent_name AS agent, count(*) AS executions,
          avg((status = 'success')::int) AS "success rate", avg(execution_time_ms) AS mean, sum(cost_usd) AS cost
        {ROWS} AND $__timeFilter(created_at) AND {ENDED} GROUP BY agent_name ORDER BY executions DESC
    """
    failures = f"""
        SELECT created_at AS ended, agent_name AS agent, status, error_type AS error, execution_time_ms AS duration,
          trace_id AS trace
        {ROWS} AND $__timeFilter(created_at) AND status IN ('failure', 'timeout', 'crashed')
        ORDER BY created_at DESC LIMIT 50
    """
    units = {"success rate": "percentunit", "mean": "ms", "cost": "currencyUSD"}
    board.with_panel(table_panel("Agents", "Every agent in the time range.", STORED, agents, **units))
    says = "The last 50 executions that failed, without their texts."
    board.with_panel(table_panel("Recent failures", says, "No failures: nothing to do", failures, duration="ms"))


def _pipeline(board: dashboard.Dashboard) -> None:
    rates = {
        "stored": "spanledger_sink_rows_stored_total",
        "rejected": "spanledger_rows_rejected_total",
        "dropped": "spanledger_rows_dropped_total",
    }
    rows = [promql(f"sum(rate({metric}[$__rate_interval]))", name, name) for name, metric in rates.items()]
    waiting = promql("sum(spanledger_spool_bytes)", "waiting")
    capacity = promql("sum(spanledger_spool_capacity_bytes)", "capacity", "B")
    oldest = promql("max(spanledger_spool_oldest_age_seconds)", "oldest")
    board.with_row(dashboard.Row("Pipeline"))
    board.with_panel(time_panel("Spool", "Bytes that wait for Postgres.", "bytes", SCRAPE, waiting, capacity))
    board.with_panel(time_panel("Oldest row", "How far Postgres is behind.", "s", SCRAPE, oldest))
    board.with_panel(time_panel("Rows", "Rows stored, rejected and dropped per second.", "ops", SCRAPE, *rows))
