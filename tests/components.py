"""The real programs the tests talk to. `scripts/components` fetches them into `.components/`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

_FETCHED = Path(__file__).resolve().parents[1] / ".components"
_POSTGRES15 = (Path("/usr/lib/postgresql/15/bin"), _FETCHED / "postgres15")  # Debian keeps them off the PATH


def component(name: str) -> Path:
    """The program called `name` (prometheus, promtool, …); for "postgres15" the directory of its programs.

    A test that needs one which is absent is skipped, or fails where REQUIRE_COMPONENTS=1 (CI).
    """
    found: Path | None
    if name == "postgres15":
        found = next((place for place in _POSTGRES15 if (place / "initdb").is_file()), None)
    else:
        path = shutil.which(name) or shutil.which(name, path=_FETCHED / "usr" / "bin")
        found = Path(path) if path else None
    if found:
        return found
    absent(f"{name} is not on this machine: scripts/components fetches it")


def absent(reason: str) -> NoReturn:
    """Skip the test for this reason, or fail it where REQUIRE_COMPONENTS=1 (CI)."""
    if os.environ.get("REQUIRE_COMPONENTS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
