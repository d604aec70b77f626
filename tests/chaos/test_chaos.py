"""The scenarios of `make chaos`, each short; those of no use when short are `long`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos import disk
from tests.chaos.play import play
from tests.chaos.postgres import Postgres, postgres
from tests.chaos.scenarios import SCENARIOS, Scenario

SHORT = frozenset(
    {"kill-workers", "kill-libraries", "postgres-killed", "commit-unheard", "disk-full", "disk-stalled"}
    | {"clock-back", "drain-killed"}
)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(scenario, id=scenario.name, marks=[] if scenario.name in SHORT else [pytest.mark.long])
        for scenario in SCENARIOS
    ],
)
def test_nothing_is_lost_or_doubled_without_a_counted_reason(scenario: Scenario, server: Postgres) -> None:
    if scenario.disk != "none" and (reason := disk.unavailable()):
        (pytest.fail if disk.required() else pytest.skip)(reason)
    balance = play(scenario, server, rounds=1, seconds=3.0, seed=0).balance
    assert balance.faults == []
    assert balance.ended > 100
    assert balance.stored + sum(balance.dropped.values()) >= balance.ended
