"""The layers, sizes and public names that docs/architecture.md promises, read from the source itself."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import telemetry

ROOT = Path(__file__).resolve().parents[1]
TELEMETRY = sorted((ROOT / "telemetry").rglob("*.py"))
APP = sorted((ROOT / "app").rglob("*.py"))
MIGRATIONS = sorted((ROOT / "migrations").rglob("*.py"))
OURS = {"app", "telemetry", "spanledger", "tests", "bench"}

# A module imports its own layer and those below it, never one above.
LAYERS = {
    "semconv": 0,
    "adoption": 0,
    "aside": 0,
    "home": 0,
    "inflight": 0,
    "deadline": 0,
    "mapped": 0,
    "segment": 0,
    "slots": 0,
    "spool": 0,
    "copytext": 0,
    "guard": 0,
    "fork": 0,
    "worker": 0,
    "caller": 1,
    "content": 1,
    "usage": 1,
    "prices": 1,
    "redact": 1,
    "rejected": 1,
    "runs": 1,
    "sampling": 1,
    "scope": 1,
    "wrap": 1,
    "crashed": 1,
    "execution": 1,
    "monitor": 1,
    "metrics": 2,
    "loader": 2,
    "replay": 2,
    "rollup": 2,
    "settle": 2,
    "sink": 2,
    "processor": 3,
    "pipeline": 3,
    "configure": 3,
    "counts": 3,
    "ledger": 3,
    "drain": 3,
    "__init__": 3,
}
# What of other people's code each layer adds to those below it.
DEPENDENCIES: list[set[str]] = [
    set(),
    {"opentelemetry", "orjson", "genai_prices"},
    {"prometheus_client", "psycopg"},
    set(),
]
PUBLIC = {
    *("AgentMonitor", "AlwaysRecord", "Inference", "Run", "Tool", "bind", "current_run"),
    *("Content", "Drain", "Prices", "Rejected", "Status", "Telemetry", "configure"),
    *("OpenRun", "cancel_run", "open_runs", "Ledger", "settle"),
}

# Heavyweights, loaded by the feature that needs them; for the library also what only its extras install.
LAZY = {"genai_prices", "grpc", "numpy", "openai", "requests", "scipy"}
EXTRAS = {"fastapi", "psycopg", "pydantic", "sqlalchemy"}


class Import(NamedTuple):
    line: int
    level: int  # dots of a relative import
    module: str  # `c` of `from . import c`
    names: tuple[str, ...]  # empty for `import a.b`


def imports(path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, 0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            for module in [node.module] if node.module else names:
                yield Import(node.lineno, node.level, module, names)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parametrize(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", files, ids=name)


@parametrize(TELEMETRY)
def test_library_module_keeps_to_its_layer(path: Path) -> None:
    assert path.stem in LAYERS, f"{name(path)} has no layer: add it to the table above"
    layer = LAYERS[path.stem]
    third_party = set[str]().union(*DEPENDENCIES[: layer + 1])
    wrong = []
    for line, level, module, _ in imports(path):
        top = module.partition(".")[0]
        allowed = LAYERS[top] <= layer if level else top in third_party or top in sys.stdlib_module_names
        if not allowed:
            wrong.append(f"line {line}: {'.' * level}{module}")
    assert wrong == []


@parametrize(APP)
def test_service_uses_the_public_names(path: Path) -> None:
    wrong = [
        found
        for found in imports(path)
        if found.module.partition(".")[0] == "telemetry"
        and (found.module != "telemetry" or not set(found.names) <= PUBLIC)
    ]
    assert wrong == []


@parametrize([*TELEMETRY, *(path for path in APP if path.name != "settings.py")])
def test_only_settings_reads_the_environment(path: Path) -> None:
    tree = ast.parse(path.read_text())
    # A default for a library that has no other switch is written, not read.
    written = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "setdefault" and path in APP
    }
    reads = [
        node.lineno
        for node in ast.walk(tree)
        if node not in written
        and (
            (isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"})
            or (isinstance(node, ast.Name) and node.id in {"environ", "getenv"})
        )
    ]
    assert reads == []


@parametrize(MIGRATIONS)
def test_migrations_import_nothing_of_ours(path: Path) -> None:
    assert [found for found in imports(path) if found.module.partition(".")[0] in OURS] == []


def test_public_names() -> None:
    assert set(telemetry.__all__) == PUBLIC
    assert [public for public in PUBLIC if not hasattr(telemetry, public)] == []


@pytest.mark.parametrize(("module", "lazy"), [("telemetry", LAZY | EXTRAS), ("app.main", LAZY)])
def test_import_loads_no_heavyweight(module: str, lazy: set[str]) -> None:
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(loaded) & lazy == set()


def test_modules_are_small() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in TELEMETRY + APP}
    assert {path: length for path, length in lengths.items() if length > 400} == {}
    assert statistics.median(length for length in lengths.values() if length) <= 150


def test_nothing_is_left_for_later() -> None:
    folders = ("app", "bench", "docs", "grafana", "migrations", "prometheus", "scripts", "telemetry", "tests")
    marks = tuple(left + right for left, right in [("TO", "DO"), ("FIX", "ME"), ("X", "XX")])
    found = [
        f"{name(path)}:{number}"
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".pyc", ".png"}
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if any(mark in line for mark in marks)
    ]
    assert found == []
