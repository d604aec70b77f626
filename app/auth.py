"""Who may call what: admin tokens for `/api/admin`, the API token for `/api/ai`."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterable
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, APIKeyQuery, HTTPAuthorizationCredentials, HTTPBearer

from app.problems import Problem

NO_STORE = {"Cache-Control": "no-store"}

HOW_TO_PASS = (
    "Pass the admin token as the header Authorization: Bearer <token>, as the header X-Admin-Token: <token>, "
    "or as ?admin_token=<token>. It is ADMIN_TOKEN in the environment or .env of the service (restart after "
    "changing it); without that setting it is in the file admin-token of its data directory."
)
POWERSHELL = (
    "The URL lost its '?': inside double quotes PowerShell takes it for a part of the variable's name. "
    'Write "${userId}?limit=20&…" instead of "$userId?limit=20&…".'
)

logger = logging.getLogger(__name__)

_admin_bearer = HTTPBearer(
    scheme_name="AdminBearer", description="An admin token. The way to choose.", auto_error=False
)
_admin_header = APIKeyHeader(
    name="X-Admin-Token",
    scheme_name="AdminHeader",
    description="An admin token, where a proxy in between uses `Authorization` itself.",
    auto_error=False,
)
_admin_query = APIKeyQuery(
    name="admin_token",
    scheme_name="AdminQuery",
    description="An admin token, for compatibility: the service takes it out of the URL before anything is "
    "logged, but shells and proxies in between may keep it.",
    auto_error=False,
)
_api_bearer = HTTPBearer(
    scheme_name="ApiBearer", description="The API token, where API_TOKEN is set.", auto_error=False
)

Bearer = HTTPAuthorizationCredentials | None


def matches(given: Iterable[str], accepted: Iterable[str]) -> bool:
    """Whether one of the given tokens is accepted, in a time that does not depend on how much of it is right.

    Digests are compared because `compare_digest` returns early for texts of different lengths; every pair is
    compared because an early end would tell which of several tokens is the right one.
    """
    digests = [_digest(token) for token in accepted]
    found = False
    for token in given:
        candidate = _digest(token)
        for digest in digests:
            found |= hmac.compare_digest(candidate, digest)
    return found


def require_admin(
    request: Request,
    bearer: Annotated[Bearer, Security(_admin_bearer)],
    header: Annotated[str | None, Security(_admin_header)],
    _declared: Annotated[str | None, Security(_admin_query)],
) -> None:
    """Let a request with an accepted admin token pass, whichever way it came.

    The one from the URL is taken out by an ASGI wrapper before anything that logs sees the request, and waits
    in the scope; `_declared` only tells OpenAPI of it.

    Raises:
        Problem: 403, no token or none that is accepted.
    """
    query: str | None = request.scope.get("spanledger.admin_token")
    given = [token for token in (bearer and bearer.credentials, header, query) if token]
    if matches(given, request.app.state.admin_tokens):
        return
    # The route's template, not the path: a broken URL may carry the token in its path.
    logger.warning(
        "admin request refused: %s token, %s %s from %s",
        "wrong" if given else "no",
        request.method,
        request.scope["route"].path,
        request.client.host if request.client else "an unknown address",
    )
    problem = "The admin token is wrong." if given else "An admin token is needed."
    advice = POWERSHELL if "&admin_token=" in request.url.path else HOW_TO_PASS
    raise Problem(403, "Forbidden", f"{problem} {advice}", headers=NO_STORE)


def require_api_token(request: Request, bearer: Annotated[Bearer, Security(_api_bearer)]) -> None:
    """Let a request with the API token pass; every request where API_TOKEN is not set.

    Raises:
        Problem: 401, no token or a wrong one.
    """
    token = request.app.state.settings.api_token
    if token is None or matches([bearer.credentials] if bearer else [], [token.get_secret_value()]):
        return
    raise Problem(
        401,
        "Unauthorized",
        "Pass the API token as the header Authorization: Bearer <token>. It is API_TOKEN in the environment "
        "or .env of the service.",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
