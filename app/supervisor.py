"""The supervisor of several workers, as a worker asks it: over a socket of their own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import httpx

from app.problems import Problem


class Answer(NamedTuple):
    """What it said; the content is as it was sent, compressed or not."""

    status: int
    headers: httpx.Headers
    content: bytes


def ask(socket: Path, path: str, headers: dict[str, str] | None = None) -> Answer:
    """GET `path`.

    Raises:
        Problem: 503, it does not answer.
    """
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=10) as client:
            with client.stream("GET", f"http://supervisor{path}", headers=headers) as answer:
                return Answer(answer.status_code, answer.headers, b"".join(answer.iter_raw()))
    except httpx.HTTPError as error:
        reason = f"The supervisor does not answer ({type(error).__name__}): try again."
        raise Problem(503, "Service Unavailable", reason, headers={"Retry-After": "5"}) from None
