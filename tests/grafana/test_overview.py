"""The committed dashboard: as generated, well-formed, and every query of it answers on real servers."""

from __future__ import annotations

import json
import re
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import psycopg
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.__main__ import TARGET, generated
from grafana.overview import overview
from tests.app.service import SEED, Service
from tests.end_to_end.prometheus import Prometheus, prometheus

GRAFANA = TARGET.parents[1]
BOARD: dict[str, Any] = json.loads(TARGET.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = BOARD["panels"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel.get("targets") or []]
VARIABLES = {
    "${service_name:sqlstring}": "'spanledger'",
    "$service_name": "spanledger",
    "$agent": ".*",
    "$__rate_interval": "20s",
    "$__range": "60s",
}


def test_the_committed_file_is_the_generated_one() -> None:
    assert [generated(), generated()] == [TARGET.read_text(encoding="utf-8")] * 2


def test_the_sdk_reads_back_what_it_wrote() -> None:
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()
    again = json.loads(json.dumps(type(overview()).from_json(BOARD), cls=JSONEncoder))
    assert [panel["title"] for panel in again["panels"]] == [panel["title"] for panel in PANELS]


def test_the_frame_of_the_dashboard() -> None:
    assert (BOARD["uid"], BOARD["schemaVersion"], BOARD["refresh"], BOARD["time"]) == (
        "spanledger-overview",
        42,
        "10s",
        {"from": "now-1h", "to": "now"},
    )
    assert [variable["name"] for variable in BOARD["templating"]["list"]] == ["service_name", "agent"]


def test_ids_are_unique_and_panels_do_not_overlap() -> None:
    assert sorted(panel["id"] for panel in PANELS) == list(range(1, len(PANELS) + 1))
    for panel in PANELS:
        refs = [target["refId"] for target in panel.get("targets") or []]
        assert len(set(refs)) == len(refs), panel["title"]
    places = [panel["gridPos"] for panel in PANELS]
    assert [place for place in places if place["x"] + place["w"] > 24] == []
    assert [pair for pair in combinations(places, 2) if overlap(*pair)] == []


def test_every_panel_says_what_it_is() -> None:
    for panel in PANELS:
        if panel["type"] != "row":
            defaults = panel["fieldConfig"]["defaults"]
            assert all([panel["title"], panel["description"], defaults["unit"], defaults["noValue"]]), panel["title"]


def test_every_data_source_is_provisioned() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/spanledger.yml").read_text())["datasources"]
    used = set(re.findall(r'"uid": "(spanledger-(?!overview)\w+)"', TARGET.read_text(encoding="utf-8")))
    assert used <= {source["uid"] for source in sources}


def test_every_query_answers(data_dir: Path, tmp_path: Path) -> None:
    with Service(data_dir) as service, prometheus(tmp_path, service.url.removeprefix("http://")) as server:
        service.ready()
        # Rates need scrapes before and between the requests.
        server.scraped_after(time.time())
        for _ in range(3):
            service.ask()
            service.ask(SEED | {"options": {"count": 3, "content": ""}})
            server.scraped_after(time.time())
        wait_for_rows(service)
        server.scraped_after(time.time() + 1)
        silent = [title for title, target in TARGETS if "expr" in target and not answer(server, target["expr"])]
        with psycopg.connect(socket_url(data_dir)) as connection:
            connection.execute("SET ROLE spanledger_grafana")
            silent += [
                title
                for title, target in TARGETS
                if "rawSql" in target and not connection.execute(expanded(target["rawSql"]).encode()).fetchall()
            ]
    assert silent == []


def test_a_name_in_sql_is_quoted_by_grafana() -> None:
    """Plainly quoted, a service named `o'clock` would break every table."""
    statements = [target["rawSql"] for _, target in TARGETS if "rawSql" in target]
    assert [statement for statement in statements if "$service_name" in statement] == []
    assert [statement for statement in statements if "${service_name:sqlstring}" not in statement] == []


def answer(server: Prometheus, expression: str) -> list[dict[str, Any]]:
    """What Prometheus says to a query as Grafana would send it, NaN left out."""
    return [series for series in server.query(filled(expression)) if series["value"][1] != "NaN"]


def filled(text: str) -> str:
    """The text with the dashboard's variables replaced."""
    for name in sorted(VARIABLES, key=len, reverse=True):
        text = text.replace(name, VARIABLES[name])
    return text


def expanded(statement: str) -> str:
    """The SQL with variables and Grafana's macros replaced, over the last hour."""
    hour = r"\1 BETWEEN now() - interval '1 hour' AND now()"
    return filled(re.sub(r"\$__timeFilter\((\w+)\)", hour, statement))


def wait_for_rows(service: Service, count: int = 6, seconds: float = 60) -> None:
    """Wait until the executions are stored."""
    deadline = time.monotonic() + seconds
    while len(service.executions()) < count:
        assert time.monotonic() < deadline, service.executions()
        time.sleep(0.1)


def socket_url(data_dir: Path) -> str:
    """How to reach the embedded server of a running service."""
    lines = (data_dir / "postgres/data/postmaster.pid").read_text().splitlines()
    return f"host={lines[4]} port={lines[3]} user=postgres dbname=spanledger"


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    """Whether two places share a cell."""
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )
