"""A telemetry for each test, and the assurance that OpenTelemetry and asyncio had nothing to complain about."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.telemetry.observed import Observed

Observe = Callable[..., Observed]


@pytest.fixture
def observe(tmp_path: Path) -> Iterator[Observe]:
    """Configures a telemetry, with the options of `configure`; shut down after the test."""
    with ExitStack() as stack:

        def start(**options: Any) -> Observed:
            observed = Observed(tmp_path / "spool", **options)
            stack.callback(observed.telemetry.shutdown)
            return observed

        yield start


@pytest.fixture
def observed(observe: Observe) -> Observed:
    return observe()


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing may be logged by OpenTelemetry (`Failed to detach context`), asyncio or our own guard."""
    with caplog.at_level(logging.WARNING):
        yield
        gc.collect()
    records = [*caplog.get_records("call"), *caplog.get_records("teardown")]
    loud = [record for record in records if record.name.split(".")[0] in ("opentelemetry", "asyncio", "spanledger")]
    assert [record.getMessage() for record in loud] == []


@pytest.fixture(autouse=True)
def no_agents_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decorated agents are known to the whole process, and exported at 0."""
    monkeypatch.setattr("telemetry.monitor._agents", set())
