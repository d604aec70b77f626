"""Writes the generated dashboard, or with --check fails when the committed one differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.overview import overview

TARGET = Path(__file__).parent / "dashboards" / "overview.json"


def generated() -> str:
    """The text of overview.json."""
    return json.dumps(overview(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """0 when the file is written or up to date."""
    if "--check" not in arguments:
        TARGET.write_text(generated(), encoding="utf-8")
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == generated():
        return 0
    sys.stderr.write(f"{TARGET.name} is not what grafana/overview.py says: run `make generate`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
