"""`spanledger doctor`: looks at a running service and everything around it, and says what to do."""

from __future__ import annotations

from app.doctor.report import examine, status, to_json, to_text

__all__ = ["examine", "status", "to_json", "to_text"]
