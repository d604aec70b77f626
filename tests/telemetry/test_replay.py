"""What is observed of a row where it is stored is what was observed where its span ended."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Exemplar, Sample

from telemetry import Prices
from telemetry.execution import Service
from telemetry.guard import Guard
from telemetry.metrics import Metrics
from telemetry.replay import Replay
from telemetry.semconv import Status
from telemetry.spool import EXECUTIONS, STEPS, TABLES
from telemetry.usage import Usage
from tests.telemetry.conftest import Observe
from tests.telemetry.observed import Observed
from tests.telemetry.stored import execution, step

OWN = ("gen_ai_", "spanledger_executions", "spanledger_requests", "spanledger_items", "spanledger_tokens")
FAMILIES = (*OWN, "spanledger_cost", "spanledger_unpriced")


class Replayed:
    """A replay with a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.guard = Guard()
        self.replay = Replay(Metrics(self.registry), self.guard)

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], tuple[float, Exemplar | None]]:
        return samples(self.registry)


def samples(
    registry: CollectorRegistry,
) -> dict[tuple[str, tuple[tuple[str, str], ...]], tuple[float, Exemplar | None]]:
    """Every sample of executions and steps with its exemplar, whose time is when it was observed and so left out."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): (sample.value, _timeless(sample))
        for family in registry.collect()
        for sample in family.samples
        if family.name.startswith(FAMILIES) and family.type != "gauge"
    }


def _timeless(sample: Sample) -> Exemplar | None:
    return sample.exemplar and sample.exemplar._replace(timestamp=None)


def work(observed: Observed) -> None:
    """Nested agents, tools, a failure, a call that was never priced, one that was, items, a call without an agent."""
    observed.telemetry.prices.load()
    with observed.monitor.execution("outer", input={"a": "tab\t"}) as run:
        run.items("cards", 3)
        with run.inference(provider="openai", model="gpt-4o") as call:
            call.usage(input_tokens=900, cache_read_tokens=400, output_tokens=120, reasoning_tokens=20)
        with run.inference(provider="nobody", model="mine") as call:
            call.usage(input_tokens=7, output_tokens=1)
        with run.tool("search") as tool:
            tool.output = ["x"]
        try:
            with observed.monitor.execution("inner"):
                raise ValueError("back\\slash")
        except ValueError:
            pass
    with observed.tracer.start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
        pass


def test_both_make_the_same_samples(observe: Observe) -> None:
    observed = observe(prices=Prices())
    work(observed)
    observed.telemetry.spool.seal()
    replayed = Replayed()
    for segment in observed.telemetry.spool.ready():
        for table in TABLES:
            replayed.replay.observe(table, segment.read(table).splitlines(keepends=True))
    assert replayed.guard.counts == {}
    assert replayed.samples() == samples(observed.registry)
    assert len(replayed.samples()) > 200


def test_a_line_that_cannot_be_read_is_reported_and_the_next_observed() -> None:
    replayed = Replayed()
    replayed.replay.observe(EXECUTIONS, [b"torn\n", execution(status=Status.FAILURE, error_type="ValueError").line()])
    assert replayed.guard.counts == {"metrics": 1}
    labels = {"service_name": "tutor", "deployment_environment_name": "test", "gen_ai_agent_name": "tutor"}
    name = "spanledger_executions_total"
    assert replayed.registry.get_sample_value(name, labels | {"status": "failure"}) == 1
    assert replayed.registry.get_sample_value(name, labels | {"status": "success"}) == 0


def test_short_jobs_of_one_service_are_one_service() -> None:
    """Each has an instance id of its own: neither series nor caches may grow with them."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    replay = Replay(metrics, Guard())
    for number in range(300):
        service = Service("cron", None, "1.0", "test", f"job-{number}")
        replay.observe(EXECUTIONS, [execution(service=service).line()])
    assert metrics.agents == {(Service("cron", None, None, "test", None), "tutor")}
    labels = {"service_name": "cron", "deployment_environment_name": "test", "gen_ai_agent_name": "tutor"}
    assert registry.get_sample_value("spanledger_executions_total", labels | {"status": "success"}) == 300


def test_a_duration_keeps_its_nanoseconds() -> None:
    replayed = Replayed()
    run = execution()
    precise: Any = run.identity._replace(start_time=run.identity.end_time - 1_234_567_891)
    replayed.replay.observe(EXECUTIONS, [run._replace(identity=precise).line()])
    labels = {"service_name": "tutor", "deployment_environment_name": "test", "gen_ai_agent_name": "tutor"}
    name = "gen_ai_invoke_agent_duration_seconds_sum"
    assert replayed.registry.get_sample_value(name, labels | {"error_type": ""}) == 1.234567891


def test_tokens_and_cost_of_a_step() -> None:
    replayed = Replayed()
    used = Usage(900, 400, 50, 120, 20, Decimal("0.0125"), "provider")
    replayed.replay.observe(STEPS, [step(request_model="m", provider="p", usage=used).line()])
    labels = {"service_name": "tutor", "deployment_environment_name": "test", "gen_ai_agent_name": "tutor"}
    model = labels | {"gen_ai_request_model": "m"}
    value = replayed.registry.get_sample_value
    types = ("input", "cache_read", "cache_write", "output", "reasoning")
    counts = [value("spanledger_tokens_total", model | {"gen_ai_token_type": kind}) for kind in types]
    assert counts == [900, 400, 50, 120, 20]
    assert value("spanledger_cost_usd_total", model | {"gen_ai_provider_name": "p"}) == 0.0125
