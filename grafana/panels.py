"""Panels as this project draws them, over Grafana's own SDK."""

from __future__ import annotations

from typing import Any, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DynamicConfigValue,
    FieldColor,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
)

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="spanledger-prometheus")
POSTGRES = DataSourceRef(type_val="grafana-postgresql-datasource", uid="spanledger-postgres")
# Okabe and Ito: told apart with every kind of colour blindness.
COLOURS = {
    "success": "#009E73",
    "failure": "#D55E00",
    "timeout": "#E69F00",
    "crashed": "#CC79A7",
    "cancelled": "#56B4E9",
    "rejected": "#999999",
}
Panel = TypeVar("Panel", stat.Panel, table.Panel, timeseries.Panel)


class Sql(Builder[Dataquery], Dataquery):
    """A query of Postgres that answers with a table; the SDK has no type for it."""

    def __init__(self, statement: str) -> None:
        self._statement = " ".join(statement.split())

    def build(self) -> Dataquery:
        return self

    def to_json(self) -> dict[str, object]:
        return {
            "datasource": POSTGRES,
            "editorMode": "code",
            "format": "table",
            "rawQuery": True,
            "rawSql": self._statement,
            "refId": "A",
        }


def stat_panel(title: str, says: str, unit: str, empty: str, query: Builder[Dataquery]) -> stat.Panel:
    """One number, six in a row."""
    panel = _panel(stat.Panel(), title, says, empty, query).unit(unit).height(4).span(4)
    return panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def time_panel(
    title: str, says: str, unit: str, empty: str, *queries: Builder[Dataquery], width: int = 8
) -> timeseries.Panel:
    """Lines over time; the colour of a status is always the same."""
    panel = _panel(timeseries.Panel(), title, says, empty, *queries).unit(unit).height(8).span(width).min(0)
    panel = panel.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI))
    for name, colour in COLOURS.items():
        fixed = FieldColor(mode=FieldColorModeId.FIXED, fixed_color=colour)
        panel = panel.override_by_name(name, [DynamicConfigValue(id_val="color", value=fixed)])
    return panel


def table_panel(title: str, says: str, empty: str, statement: str, **units: str) -> table.Panel:
    """Rows of Postgres; `units` are those of its columns."""
    panel = _panel(table.Panel(), title, says, empty, Sql(statement)).unit("short").height(8).span(12)
    for column, unit in units.items():
        panel = panel.override_by_name(column, [DynamicConfigValue(id_val="unit", value=unit)])
    return panel


def promql(expression: str, legend: str = "", ref: str = "A", *, exemplars: bool = False) -> prometheus.Dataquery:
    """A query over the dashboard's time range."""
    query = prometheus.Dataquery().datasource(PROMETHEUS).expr(expression).legend_format(legend).ref_id(ref)
    return query.range().exemplar(exemplars)


def now(expression: str) -> prometheus.Dataquery:
    """A query of this moment."""
    return prometheus.Dataquery().datasource(PROMETHEUS).expr(expression).ref_id("A").instant()


def thresholds(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Colours from a value on; the first has none."""
    levels = [Threshold(value=value, color=COLOURS[name]) for value, name in steps]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(levels)


def _panel(panel: Panel, title: str, says: str, empty: str, *queries: Any) -> Panel:
    source: DataSourceRef = PROMETHEUS if isinstance(queries[0], prometheus.Dataquery) else POSTGRES
    panel.title(title).description(says).no_value(empty).datasource(source)
    for query in queries:
        panel.with_target(query)
    return panel
