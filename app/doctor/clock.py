"""Does everybody agree on what time it is?"""

from __future__ import annotations

from email.utils import parsedate_to_datetime

import psycopg

from app.doctor.finding import Check, Finding, fail, ok, skip, warn
from app.doctor.patient import Away, Patient

WARN_SECONDS, FAIL_SECONDS = 2.0, 60.0
ADVICE = "Synchronise the clocks (NTP): rows of the wrong time miss their partition, and dashboards their window."


def clock(patient: Patient) -> Finding:
    """This machine against the database and the service, and the latest row against this machine."""
    ahead: dict[str, float] = {}
    try:
        before = patient.now()
        theirs = patient.database.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
        assert theirs is not None
        ahead["database"] = float(theirs[0]) - (before + patient.now()) / 2
        with patient.reading_rows() as connection:
            latest = connection.execute("SELECT extract(epoch FROM max(created_at)) FROM agent_executions").fetchone()
        if latest is not None and latest[0] is not None:
            ahead["latest row"] = max(0.0, float(latest[0]) - patient.now())
    except (Away, psycopg.Error):
        pass  # they have lines of their own
    try:
        before = patient.now()
        date = patient.get(str(patient.alive.url)).headers.get("date", "")
        second = parsedate_to_datetime(date).timestamp()  # a whole one: the service's time is up to 1 s later
        ahead["service"] = max(second - patient.now(), min(0.0, second + 1 - before))
    except (Away, ValueError):
        pass
    if not ahead:
        return skip("neither database nor service to compare with")
    seen = "ahead of this machine: " + ", ".join(
        f"{name} {round(seconds, 1) + 0:+} s" for name, seconds in ahead.items()
    )
    worst = max(map(abs, ahead.values()))
    if worst > FAIL_SECONDS:
        return fail(seen, ADVICE)
    return warn(seen, ADVICE) if worst > WARN_SECONDS else ok(seen)


CHECKS = (Check("clock", clock),)
