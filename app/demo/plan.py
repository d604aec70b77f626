"""What the demo asks for: a repeatable mix of requests, each with the status it must end in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CONTENT = (
    "Python is a programming language. A span is a record of one operation. A counter is a number that only grows. "
    "Postgres is a relational database. Prometheus is a monitoring system. Grafana is a tool for dashboards. "
)
LONG = CONTENT * 400
"""Enough work for a deadline to pass, or a caller to leave, in the middle of it."""
OUTCOMES = {"success": 14, "failure": 2, "timeout": 2, "cancelled": 2}
"""How often each is asked for."""
NEEDS_CONTENT = ("flashcard_generation", "quiz", "summary")
"""Agents that fail without content: how the demo makes one fail."""
USERS = 5


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, and how it must end. For `cancelled` the caller leaves after the first event."""

    body: dict[str, Any]
    status: str


def asks(run_id: str, broken: str | None = None, seed: int = 1) -> Iterator[Ask]:
    """Requests without end, the same for the same seed. Those of the agent `broken` all fail."""
    random_ = random.Random(seed)
    while True:
        user = random_.randrange(USERS)
        body: dict[str, Any] = {
            "user_id": user_id(run_id, user),
            "session_id": f"{user_id(run_id, user)}-{random_.randrange(3)}",
            "message": "What is a span?",
        }
        if broken is not None and random_.random() < 0.5:
            yield Ask({**body, "type": broken, "options": {}}, "failure")
            continue
        status = random_.choices(list(OUTCOMES), list(OUTCOMES.values()))[0]
        agents = NEEDS_CONTENT if status == "failure" else (*NEEDS_CONTENT, "chat")
        body["type"] = random_.choice([agent for agent in agents if agent != broken])
        body["options"] = {
            "success": {"count": random_.randint(1, 5), "content": CONTENT},
            "failure": {},
            "timeout": {"content": LONG, "timeout_seconds": 0.001},
            "cancelled": {"content": LONG, "count": 50},
        }[status]
        yield Ask(body, status)


def user_id(run_id: str, number: int) -> str:
    """A user of this run of the demo alone, so that its rows can be told from all others."""
    return f"demo-{run_id}-{number}"
