"""`python -m bench [NAME …] [--write]`: run the benchmarks, all or some of them, and print their figures."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from bench import backlog, call, outage, redaction, request, service, sink
from bench.figure import HEADER, Figure

BENCHMARKS: dict[str, ModuleType] = {
    module.__name__.removeprefix("bench."): module
    for module in (call, redaction, request, service, sink, outage, backlog)
}
WIDTHS = ("<47", "<6", ">7", ">13", ">7", ">6", "<0")
RESULTS = Path(__file__).with_name("RESULTS.md")
PACKAGES = (
    *("opentelemetry-sdk", "opentelemetry-instrumentation-fastapi", "prometheus-client", "orjson"),
    *("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "psycopg", "sqlalchemy", "asyncpg"),
)


def main() -> None:
    """Print each figure when it is there; with --write also into RESULTS.md."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all when none is given")
    parser.add_argument("--write", action="store_true", help="write bench/RESULTS.md too")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    names = arguments.names or list(BENCHMARKS)
    print(f"{machine()}\n")
    parts = ["# Results of `make bench`", machine(), "Medians over the rounds of one run, with the lowest and highest."]
    for name in names:
        method = BENCHMARKS[name].__doc__ or ""
        print(f"## {name}\n{method}")
        run: Callable[[], Iterator[Figure]] = BENCHMARKS[name].run
        rows: list[tuple[str, ...]] = [HEADER]
        print(_aligned(HEADER))
        for figure in run():
            rows.append(figure.cells())
            print(_aligned(rows[-1]), flush=True)
        print()
        parts += [f"## {name}", method.strip(), _table(rows)]
    if arguments.write:
        RESULTS.write_text("\n\n".join(parts) + "\n")


def machine() -> str:
    """Where this ran: processor, system, and the versions of what is measured."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        processor = found[1]
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} × {processor}, {platform.system()} {platform.machine()}, load before {load:.1f}; "
        f"Python {platform.python_version()}, {versions}"
    )


def _aligned(cells: tuple[str, ...]) -> str:
    return " ".join(f"{cell:{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def _table(rows: list[tuple[str, ...]]) -> str:
    header, *body = rows
    rule = ("---",) * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *body))


if __name__ == "__main__":
    main()
