"""The loss ledger: what came in, where it is now, and whether that adds up."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .counts import Counts
from .spool import Spool

if TYPE_CHECKING:
    from .sink import PostgresSink  # psycopg is an extra


class Door(NamedTuple):
    """Executions of the processes observed here: started = in_flight + ended; ended = spooled + dropped + rejected.

    What a killed process had in flight is recorded as `crashed`, and counts as ended with it.
    """

    started: int
    in_flight: int
    ended: int
    spooled: int
    dropped: int
    rejected: int

    def unexplained(self) -> int:
        """Executions that are neither here nor there. One that starts or ends just now may be, for a moment."""
        lost = self.ended - self.spooled - self.dropped - self.rejected
        return abs(self.started - self.in_flight - self.ended) + abs(lost)


class Store(NamedTuple):
    """Rows, of executions and steps, that were sealed since this process began, or lay there when it did:
    sealed = waiting + stored + duplicates + rejected. A duplicate was stored before.
    """

    sealed: int
    waiting: int
    stored: int
    duplicates: int
    rejected: int

    def unexplained(self) -> int:
        """Rows that are neither here nor there. A batch that is committed just now may be, for a moment."""
        return abs(self.sealed - self.waiting - self.stored - self.duplicates - self.rejected)


class Ledger(NamedTuple):
    """Both halves. Without a sink nothing is stored here, and only the door is meant."""

    door: Door
    store: Store

    @classmethod
    def of(cls, counts: Counts, spool: Spool, sink: PostgresSink | None) -> Ledger:
        """As of now."""
        seen = counts.executions
        door = Door(
            *(seen["started"], counts.in_flight, seen["ended"], seen["spooled"], seen["dropped"], seen["rejected"])
        )
        if sink is None:
            return cls(door, Store(0, 0, 0, 0, 0))
        stored, duplicates, rejected = (
            sum(counter.values()) for counter in (sink.stored, sink.duplicates, sink.rejected)
        )
        return cls(door, Store(spool.sealed_lines, spool.waiting_lines(), stored, duplicates, rejected))
