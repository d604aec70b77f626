"""The lock files belong to pyproject.toml: `make lock` was not forgotten."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
RUNTIME = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", (ROOT / lock).read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("requirements.lock", RUNTIME),
        ("requirements-dev.lock", RUNTIME + PYPROJECT["dependency-groups"]["dev"]),
    ],
)
def test_lock_satisfies_every_requirement(lock: str, wanted: list[str]) -> None:
    locked = pins(lock)
    unmet = [
        line
        for line in wanted
        if (requirement := Requirement(line)).name != PROJECT["name"]
        and not requirement.specifier.contains(locked.get(canonicalize_name(requirement.name), ""), True)
    ]
    assert unmet == []


def test_development_runs_on_the_versions_of_the_service() -> None:
    runtime = pins("requirements.lock")
    assert {
        package: version for package, version in pins("requirements-dev.lock").items() if package in runtime
    } == runtime


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_every_pin_has_a_hash_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert [block for block in blocks if "    --hash=sha256:" not in block] == []
    assert "://" not in text


def test_version_has_its_entry_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[0] in {"Unreleased", PROJECT["version"]}
