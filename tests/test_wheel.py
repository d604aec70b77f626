"""The published wheel: only `spanledger`, beside a project that has an `app` and a `telemetry` of its own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

AGENT = """
import sys
from pathlib import Path

for extra in ("fastapi", "genai_prices", "openai", "psycopg", "pydantic", "sqlalchemy"):
    sys.modules[extra] = None  # as if it were not installed

import app, telemetry
import spanledger

configured = spanledger.configure(spool_dir=Path(sys.argv[1]))
with spanledger.AgentMonitor().execution("greeting", user_id="u1", input="Hello") as run:
    run.output = "Hello, you"
samples = {
    (sample.name, sample.labels.get("gen_ai_agent_name"), sample.labels.get("status")): sample.value
    for metric in configured.registry.collect()
    for sample in metric.samples
}
configured.shutdown()
print(app.OWNER, telemetry.OWNER, spanledger.__file__)
print(samples["spanledger_executions_total", "greeting", "success"])
print(sorted(name for name in sys.modules if name.startswith(("app.", "telemetry."))))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as for a release (source archive first, wheel from that), without the network."""
    out = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", out, ROOT)
    (built,) = out.glob("*.whl")
    return built


def python(*args: str | Path, cwd: Path | None = None, path: Path | None = None) -> str:
    env = {"PATH": "/usr/bin:/bin"} | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_the_library_and_nothing_else(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    info = f"spanledger-{PROJECT['version']}.dist-info/"
    assert {file for file in files if not file.startswith(info)} == {
        f"spanledger/{path.relative_to(ROOT / 'telemetry')}"
        for path in (ROOT / "telemetry").rglob("*")
        if path.suffix in {".py", ".typed"}
    }
    assert info + "licenses/LICENSE" in files


def test_wheel_lives_beside_a_project_with_the_same_folder_names(wheel: Path, tmp_path: Path) -> None:
    installed, project, spool = (tmp_path / name for name in ("site", "project", "spool"))
    python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", installed, wheel)
    for package in ("app", "telemetry"):
        (project / package).mkdir(parents=True)
        (project / package / "__init__.py").write_text(f"OWNER = 'their {package}'\n")
    (project / "agent.py").write_text(AGENT)

    assert python("-W", "error", "agent.py", spool, cwd=project, path=installed).splitlines() == [
        f"their app their telemetry {installed / 'spanledger' / '__init__.py'}",
        "1.0",
        "[]",
    ]
    rows = [path for path in spool.rglob("*") if path.suffix and b"greeting" in path.read_bytes()]
    assert len(rows) == 1
    assert b"Hello, you" in rows[0].read_bytes()
