from __future__ import annotations

from collections import Counter
from itertools import islice

from app.agents import AgentRequest
from app.demo.plan import OUTCOMES, asks


def test_the_plan_is_repeatable_and_has_every_outcome_and_agent() -> None:
    plan = list(islice(asks("r"), 200))
    assert plan == list(islice(asks("r"), 200))
    assert {ask.status for ask in plan} == set(OUTCOMES)
    requests = [AgentRequest.model_validate(ask.body) for ask in plan]  # the service takes them all
    assert Counter(request.type for request in requests).keys() == {"flashcard_generation", "quiz", "summary", "chat"}
    assert len({request.user_id for request in requests}) == 5
    assert len({request.session_id for request in requests}) == 15


def test_a_broken_agent_only_fails_and_the_others_go_on() -> None:
    plan = list(islice(asks("r", "quiz"), 200))
    assert {ask.status for ask in plan if ask.body["type"] == "quiz"} == {"failure"}
    assert {ask.status for ask in plan if ask.body["type"] != "quiz"} == set(OUTCOMES)
