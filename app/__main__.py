"""`python -m app` is `spanledger`."""

from __future__ import annotations

from app.cli import spanledger

spanledger()
