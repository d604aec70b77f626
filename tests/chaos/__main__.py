"""`python -m tests.chaos [NAME …]`: break things under load and prove that nothing is lost or doubled.

Exit code 1: a loss, a double or a difference that no counted reason explains.
"""

from __future__ import annotations

import argparse
import signal
import sys
from random import SystemRandom

from tests.chaos import disk
from tests.chaos.play import Latency, Outcome, play
from tests.chaos.postgres import Postgres, postgres
from tests.chaos.scenarios import SCENARIOS, Scenario

HEADER = (
    *("scenario", "s", "started", "ended", "rows", "crashed", "dropped", "rejected", "replayed"),
    *("doubled", "counted", "queued", "call p50/p99/max ms", "before", "loop p99.9/max ms", "before"),
)
WIDTHS = (20, 4, 7, 7, 7, 7, 20, 8, 8, 7, 7, 7, 20, 20, 17, 17)


def main() -> int:
    """Play the scenarios that are asked for, print a line for each; how many had faults."""
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios; all of them when none is given")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--rounds", type=int, default=5, help="how often each does what it does")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long an outage lasts")
    parser.add_argument("--seed", type=int, help="the random moments of an earlier run, which printed it")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; --list tells what there is")
    if arguments.list:
        for scenario in SCENARIOS:
            print(f"{scenario.name:21}{scenario.what}")
        return 0
    seed = SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}, {arguments.rounds} rounds, outages of {arguments.seconds:.0f} s\n{_line(HEADER)}", flush=True)
    without_disks = disk.unavailable()
    failed = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every `with`: nothing stays mounted, or frozen
    with postgres() as server:
        for scenario in SCENARIOS:
            if arguments.names and scenario.name not in arguments.names:
                continue
            if scenario.disk != "none" and without_disks:
                failed += disk.required()
                print(f"{scenario.name:21}skipped: {without_disks}", flush=True)
                continue
            failed += not _played(scenario, server, arguments.rounds, arguments.seconds, seed)
    print("Nothing unexplained." if not failed else f"{failed} scenarios failed; seed {seed}")
    return failed


def _played(scenario: Scenario, server: Postgres, rounds: int, seconds: float, seed: int) -> bool:
    """Whether it went well; its line and its faults are printed."""
    try:
        outcome = play(scenario, server, rounds=rounds, seconds=seconds, seed=seed)
    except AssertionError as error:
        print(f"{scenario.name:20} FAULT {error} {error.__notes__}", flush=True)
        return False
    print(_line(_cells(outcome)), flush=True)
    for fault in outcome.balance.faults:
        print(f"  FAULT {fault}", flush=True)
    return not outcome.balance.faults


def _cells(outcome: Outcome) -> tuple[str, ...]:
    balance = outcome.balance
    dropped = ", ".join(f"{reason} {number}" for reason, number in balance.dropped.items()) or "0"
    numbers = (balance.rejected, balance.replayed, balance.duplicates, balance.counted, balance.queued)
    return (
        *(outcome.scenario, f"{outcome.seconds:.0f}", str(balance.started), str(balance.ended), str(balance.stored)),
        *(str(balance.crashed), dropped, *map(str, numbers)),
        *(_three(latency) for latency in reversed(outcome.calls)),
        *(_two(latency) for latency in reversed(outcome.stalls)),
    )


def _three(latency: Latency) -> str:
    return f"{latency.p50:.2f}/{latency.p99:.1f}/{latency.most:.0f}"


def _two(latency: Latency) -> str:
    return f"{latency.p999:.1f}/{latency.most:.0f}" if latency.most else "-"


def _line(cells: tuple[str, ...]) -> str:
    return " ".join(
        f"{cell:{'<' if index in (0, 6) else '>'}{width}}"
        for index, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    )


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
