"""Counts: what went wrong in a process, as numbers that add up over processes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from .guard import Guard
from .metrics import Metrics, where
from .processor import DROP_REASONS, EXECUTION_STATES, REJECT_REASONS, ExecutionProcessor
from .runs import OpenSpans
from .spool import Spool

Place = tuple[str, str, str]  # service, environment, agent
PLACES = ("metrics", "monitor", "on_end", "on_start", "sink", "spool")


class Counts(NamedTuple):
    """Rows dropped and rejected by reason, our own errors by place, executions by where they are, and the rest."""

    dropped: Counter[str]
    rejected: Counter[str]
    errors: Counter[str]
    executions: Counter[str]
    in_flight: int = 0
    evicted: int = 0  # open spans forgotten
    open_spans: int = 0
    queued_lines: int = 0
    unrecorded_runs: int = 0
    agents: frozenset[Place] = frozenset()  # known to the process, so that they are exported at 0

    @classmethod
    def none(cls) -> Counts:
        """Every reason and place that is known, at 0."""
        return cls(
            Counter(dict.fromkeys(DROP_REASONS, 0)),
            Counter(dict.fromkeys(REJECT_REASONS, 0)),
            Counter(dict.fromkeys(PLACES, 0)),
            Counter(dict.fromkeys(EXECUTION_STATES, 0)),
        )

    @classmethod
    def of(
        cls, processor: ExecutionProcessor, spans: OpenSpans, spool: Spool, guard: Guard, metrics: Metrics
    ) -> Counts:
        """Those of this process; what the sink rejects is not in it."""
        unrecorded = spool.runs.unrecorded if spool.runs is not None else 0
        return cls(
            *(processor.dropped.copy(), processor.rejected.copy(), guard.counts.copy()),  # other threads count on
            *(processor.executions.copy(), len(spans.executions()), spans.evicted),
            *(len(spans), spool.queued_lines, unrecorded),
            frozenset((*where(service), agent) for service, agent in metrics.agents.copy()),
        )

    @classmethod
    def total(cls, parts: Iterable[Counts]) -> Counts:
        """The sum of several."""
        total = cls.none()
        for part in parts:
            for counter, more in zip(total[:4], part[:4], strict=True):
                counter.update(more)
            total = total._replace(
                in_flight=total.in_flight + part.in_flight,
                evicted=total.evicted + part.evicted,
                open_spans=total.open_spans + part.open_spans,
                queued_lines=total.queued_lines + part.queued_lines,
                unrecorded_runs=total.unrecorded_runs + part.unrecorded_runs,
                agents=total.agents | part.agents,
            )
        return total

    @classmethod
    def from_json(cls, document: bytes) -> Counts:
        """What `to_json` wrote.

        Raises:
            ValueError: It is something else, such as half of it.
        """
        values = json.loads(document)
        if not isinstance(values, list) or len(values) != len(cls._fields):
            raise ValueError("not the counts of a process")
        *counters, in_flight, evicted, open_spans, queued, unrecorded, agents = values
        dropped, rejected, errors, executions = map(Counter[str], counters)
        return cls(
            *(dropped, rejected, errors, executions, in_flight, evicted, open_spans, queued, unrecorded),
            frozenset((service, environment, agent) for service, environment, agent in agents),
        )

    def to_json(self) -> bytes:
        """For another process, without the zeros."""
        counters = ({name: count for name, count in counter.items() if count} for counter in self[:4])
        return json.dumps([*counters, *self[4:9], sorted(self.agents)]).encode()

    def ended(self) -> Counts:
        """What they come to when the process has ended: what was open has ended too, in the spool, crashed or not."""
        executions = self.executions.copy()
        executions["spooled"] += executions["started"] - executions["ended"]
        executions["ended"] = executions["started"]
        return self._replace(open_spans=0, in_flight=0, executions=executions)
