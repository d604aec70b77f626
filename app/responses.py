"""How the admin endpoints write JSON: exactly what is stored."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import orjson
from fastapi.responses import Response

from app.auth import NO_STORE


class ExactJSON(Response):
    """JSON whose numbers have every digit and whose times are RFC 3339 in UTC with microseconds.

    FastAPI's own serialisation would turn `numeric` into text or a float, and fails on a stored payload that
    is nested deeper than it can follow. Never cached.
    """

    media_type = "application/json"

    def __init__(self, content: object, status_code: int = 200) -> None:
        text = orjson.dumps(content, default=_default, option=orjson.OPT_PASSTHROUGH_DATETIME)
        super().__init__(text, status_code, NO_STORE)


def stored_json(text: str | None) -> object:
    """Stored text as it goes into an answer: itself where it is JSON, else a string."""
    if text is None:
        return None
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return orjson.Fragment(text)


def _default(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, Decimal):
        return orjson.Fragment(format(value, "f")) if value.is_finite() else None
    raise TypeError(f"{type(value).__name__} is not written to JSON")
