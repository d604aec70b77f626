"""docs/metrics.md against the metrics that are there: every family with its labels, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from telemetry import AgentMonitor, configure
from tests.end_to_end.sources import families

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
NAME = re.compile(r"`((?:spanledger|gen_ai)_[a-z0-9_]+?)(?:\{([a-z_, …]*)\})?`")
SERVICE = frozenset({"service_name", "deployment_environment_name"})
"""Labels every metric of executions and steps has; a page may say so once."""


def no_database() -> psycopg.Connection[Any]:
    raise psycopg.OperationalError("away")


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, frozenset[str]]:
    """Labels of each family, after one execution that moves all of them."""
    registry, provider = CollectorRegistry(), TracerProvider(shutdown_on_exit=False)
    spool_dir = tmp_path_factory.mktemp("spool")
    telemetry = configure(spool_dir=spool_dir, connect=no_database, tracer_provider=provider, registry=registry)
    monitor = AgentMonitor()
    with monitor.execution("agent") as run:
        for cost in (None, 0.5):
            with run.inference(provider="openai", model="gpt-4o-mini") as call:
                call.first_chunk()
                call.usage(input_tokens=2, output_tokens=1, cost_usd=cost)
        with run.tool("search"):
            run.items("cards", 1)
    found = families(registry)
    telemetry.shutdown(0.1)
    silent = [name for name, labels in found.items() if labels is None]
    assert silent == [], "no series yet, so their labels are unknown: make the execution above move them"
    return {name: labels for name, labels in found.items() if labels is not None}


def documented(text: str) -> dict[str, frozenset[str]]:
    """Labels of each metric the page describes.

    A metric is described in a table row whose first cell names it in backticks, with its labels in backticks in
    the cells after that, or by a heading, with its labels in backticks below; `name{label, label}` does as well.
    """
    found: dict[str, frozenset[str]] = {}
    for block in re.split(r"\n(?=#|\|)", text):
        lines = block.split("\n", 1)
        head = lines[0].split("|")[1] if lines[0].startswith("|") else lines[0] if lines[0].startswith("#") else ""
        rest = lines[0].removeprefix("|").partition("|")[2] if lines[0].startswith("|") else "\n".join(lines[1:])
        for name, braces in NAME.findall(head):
            labels = re.findall(r"`([a-z_]+)`", rest) + re.findall(r"[a-z_]+", braces)
            found[name] = frozenset(labels)
    return found


def test_the_page_names_every_metric_and_no_other(registered: dict[str, frozenset[str]]) -> None:
    described = documented(PAGE.read_text())
    assert sorted(described) == sorted(registered)


def test_the_page_names_the_labels_of_each(registered: dict[str, frozenset[str]]) -> None:
    described = documented(PAGE.read_text())
    every_label = frozenset[str]().union(*registered.values())
    wrong = {
        name: (sorted(described[name] & every_label), sorted(labels))
        for name, labels in registered.items()
        if name in described and (described[name] & every_label) - SERVICE != labels - SERVICE
    }
    assert wrong == {}


def test_metrics_named_anywhere_in_the_docs_exist(registered: dict[str, frozenset[str]]) -> None:
    labels = frozenset[str]().union(*registered.values())
    parts = {f"{name}_{part}" for name in registered for part in ("bucket", "count", "sum")}
    wrong = {
        (page.name, name)
        for page in (*PAGE.parent.rglob("*.md"), PAGE.parents[1] / "README.md")
        for name, _ in NAME.findall(page.read_text())
        if name.startswith("gen_ai_") or name.endswith(("_total", "_seconds", "_bytes"))
        if name not in registered.keys() | parts | labels
    }
    assert wrong == set()
