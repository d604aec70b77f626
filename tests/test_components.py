from __future__ import annotations

from pathlib import Path

import pytest

from tests.components import component


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tests.components._FETCHED", tmp_path / "fetched")
    monkeypatch.setattr("tests.components._POSTGRES15", (tmp_path / "postgres",))
    return tmp_path


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)
    return path


def test_program_on_the_path_wins_over_the_fetched_one(bare_machine: Path) -> None:
    fetched = program(bare_machine / "fetched/usr/bin/promtool")
    assert component("promtool") == fetched
    installed = program(bare_machine / "promtool")
    assert component("promtool") == installed


def test_postgres_is_the_directory_of_its_programs(bare_machine: Path) -> None:
    initdb = program(bare_machine / "postgres/initdb")
    assert component("postgres15") == initdb.parent


@pytest.mark.parametrize(("required", "outcome"), [("0", pytest.skip.Exception), ("1", pytest.fail.Exception)])
@pytest.mark.parametrize("name", ["prometheus", "postgres15"])
def test_missing_program(
    bare_machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    required: str,
    outcome: type[BaseException],
) -> None:
    monkeypatch.setenv("REQUIRE_COMPONENTS", required)
    with pytest.raises(outcome, match=f"^{name} is not on this machine: scripts/components fetches it$"):
        component(name)
