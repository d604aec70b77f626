"""`make sbom`: every package of the lock is in it, at its version and with its hashes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_sbom_lists_what_is_locked(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    # The recipe alone: what it depends on would install an environment here.
    recipe = ["make", "--silent", "sbom", "--old-file=dev", f"PY={sys.executable}"]
    (tmp_path / "dev").touch()
    phony = (tmp_path / "Makefile").read_text().replace(" dev\n", "\n", 1)
    (tmp_path / "Makefile").write_text(phony)
    subprocess.run(recipe, cwd=tmp_path, check=True, capture_output=True)

    bom = json.loads((tmp_path / "dist" / "sbom.cdx.json").read_text())
    lock = (ROOT / "requirements.lock").read_text()
    pins = dict(re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;]+)", lock, re.MULTILINE))
    assert (bom["bomFormat"], bom["metadata"]["component"]["name"]) == ("CycloneDX", "spanledger")
    assert {part["name"]: part["version"] for part in bom["components"]} == pins
    hashes = {
        digest["content"]
        for part in bom["components"]
        for reference in part["externalReferences"]
        for digest in reference.get("hashes", [])
    }
    assert hashes == set(re.findall(r"--hash=sha256:(\w+)", lock))
