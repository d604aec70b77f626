"""A decorated call beside the decorators of other libraries: `make bench-peers`, not a part of `make bench`.

The same function of 1 KB in and 1 KB out, decorated by each, each in an environment and a process of its own, taking
turns of 300 calls. Ours is on disk and counted when the call returns. Langfuse hands its span to an exporter that does
nothing; MLflow writes into its SQLite store by a thread of its own, as it does by itself. Wall time of the call.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.figure import HEADER, Figure, ratios

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".peers"
PEERS = {"langfuse": "langfuse==5.0.4", "mlflow": "mlflow==3.17.2"}
ROUNDS = 21


class Side:
    """A process that makes a round of calls when it is asked to."""

    def __init__(self, name: str, python: Path, directory: Path) -> None:
        directory.mkdir()
        command = [str(python), str(Path(__file__).with_name("peer.py")), name, str(directory)]
        ours = {"PYTHONPATH": str(ROOT)} if name == "spanledger" else {}
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env={"PATH": "/usr/bin:/bin", **ours},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def round(self) -> float:
        """Microseconds of a call."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def environment(name: str) -> Path:
    """The Python of an environment with this peer, which is made at first."""
    python = ENVIRONMENTS / name / "bin" / "python"
    if not (ENVIRONMENTS / name / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENTS / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", PEERS[name]], check=True)
        (ENVIRONMENTS / name / "installed").touch()
    return python


def run() -> Iterator[Figure]:
    """Ours against each."""
    pythons = {"spanledger": Path(sys.executable)} | {name: environment(name) for name in PEERS}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        sides = {name: Side(name, python, Path(directory, name)) for name, python in pythons.items()}
        for side in sides.values():
            stack.callback(side.process.wait)
            stack.callback(side.process.kill)
        found: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(ROUNDS + 3):
            for name, side in sides.items():
                microseconds = side.round()
                if number >= 3:  # the first rounds warm up
                    found[name].append(microseconds)
    yield Figure("ours / Langfuse @observe", "×", ratios(found["spanledger"], found["langfuse"]), 0.3, 0.2)
    yield Figure("ours / MLflow @trace", "×", ratios(found["spanledger"], found["mlflow"]))
    for name, values in found.items():
        yield Figure(name, "µs", values)


if __name__ == "__main__":
    print(__doc__)
    for cells in (HEADER, *(figure.cells() for figure in run())):
        print(" ".join(f"{cell:<26}" if index == 0 else f"{cell:>12}" for index, cell in enumerate(cells)))
