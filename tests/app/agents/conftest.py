from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.agents.recording import Recording, recording


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recording]:
    with recording(tmp_path) as recorded:
        yield recorded
