from __future__ import annotations

from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, ParentBased

from telemetry import AlwaysRecord

ATTRIBUTES = {"gen_ai.operation.name": "chat"}


def test_what_would_be_dropped_is_recorded_with_its_attributes() -> None:
    result = AlwaysRecord(ParentBased(ALWAYS_OFF)).should_sample(None, 1, "chat m", attributes=ATTRIBUTES)
    assert (result.decision, dict(result.attributes)) == (Decision.RECORD_ONLY, ATTRIBUTES)


def test_what_is_sampled_stays_sampled() -> None:
    result = AlwaysRecord(ALWAYS_ON).should_sample(None, 1, "chat m", attributes=ATTRIBUTES)
    assert (result.decision, dict(result.attributes)) == (Decision.RECORD_AND_SAMPLE, ATTRIBUTES)


def test_its_description_names_the_root() -> None:
    assert AlwaysRecord(ALWAYS_OFF).get_description() == "AlwaysRecord{AlwaysOffSampler}"
