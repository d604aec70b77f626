"""Errors as `application/problem+json` (RFC 9457): every one says what to do and which trace to look at."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from opentelemetry import trace
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

MEDIA_TYPE = "application/problem+json"
MESSAGE_MAX = 300
"""Longest message of one wrong field, in characters: a message may quote what was sent."""

RENAMED = {413: "Content Too Large", 422: "Unprocessable Content"}
"""Titles of RFC 9110 where Python 3.11 and 3.12 know older ones."""

NOT_UTF8 = (
    "The body is not UTF-8. Windows PowerShell 5.1 sends text as ISO-8859-1: use "
    '-ContentType "application/json; charset=utf-8" or '
    "-Body ([System.Text.Encoding]::UTF8.GetBytes($body))."
)
NOT_JSON = "The body must be JSON and the request must carry the header Content-Type: application/json."

logger = logging.getLogger(__name__)


class Problem(Exception):
    """An error answer; raise it anywhere below a route.

    `extra` become members of the answer beside the standard ones. Source: RFC 9457, section 3.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        type: str = "about:blank",
        headers: Mapping[str, str] | None = None,
        **extra: object,
    ) -> None:
        super().__init__(f"{status} {title}: {detail}")
        self.status = status
        self.title = title
        self.detail = detail
        self.type = type
        self.headers = headers
        self.extra = extra

    def response(self, scope: Mapping[str, Any]) -> Response:
        """The answer for the request of this ASGI scope."""
        content: dict[str, object] = {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            content["trace_id"] = trace.format_trace_id(span.trace_id)
        if request_id := scope.get("spanledger.request_id"):
            content["request_id"] = request_id
        return JSONResponse(content, self.status, self.headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_unhandled)


async def _on_problem(request: Request, exc: Exception) -> Response:
    return cast(Problem, exc).response(request.scope)


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    error = cast(HTTPException, exc)
    if error.status_code < 200 or error.status_code in (204, 304):
        return Response(status_code=error.status_code, headers=error.headers)
    phrase = HTTPStatus(error.status_code).phrase
    title = RENAMED.get(error.status_code, phrase)
    detail = str(error.detail)
    if isinstance(error.__cause__, UnicodeDecodeError):
        detail = NOT_UTF8
    elif detail == phrase and error.status_code == HTTPStatus.NOT_FOUND:
        detail = "Nothing is served at this path; /docs lists what is."
    elif detail == phrase and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.method} is not allowed at this path; allowed: {allowed}."
    return Problem(error.status_code, title, detail, headers=error.headers).response(request.scope)


async def _on_validation_error(request: Request, exc: Exception) -> Response:
    error = cast(RequestValidationError, exc)
    if isinstance(error.body, bytes):  # FastAPI parses a body only when its content type says JSON
        return Problem(415, "Unsupported Media Type", NOT_JSON).response(request.scope)
    fields = [_field_error(item) for item in error.errors()]
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in fields[:3])
    if len(fields) > 3:
        detail += f"; and {len(fields) - 3} more, see errors"
    return Problem(422, RENAMED[422], detail, errors=fields).response(request.scope)


async def _on_unhandled(request: Request, exc: Exception) -> Response:
    logger.error("unhandled error in %s %s", request.method, request.url.path, exc_info=exc)
    request.scope["spanledger.logged"] = True
    detail = "An error inside the service. Its log holds the details under this trace_id and request_id."
    return Problem(500, "Internal Server Error", detail).response(request.scope)


def _field_error(error: Mapping[str, Any]) -> dict[str, str]:
    """One wrong field as `{field, message, allowed?}`, without the value that was sent."""
    context: Mapping[str, Any] = error.get("ctx") or {}
    loc: Sequence[str | int] = error["loc"]
    kind: str = error["type"]
    if kind == "json_invalid":
        return {"field": "body", "message": f"not valid JSON at character {loc[-1]}: {context['error']}"}
    if kind == "union_tag_invalid":  # its message quotes the value
        field = ".".join(map(str, (*loc, context["discriminator"].strip("'"))))
        return {"field": field, "message": "unknown value", "allowed": str(context["expected_tags"])}
    result = {"field": ".".join(map(str, loc)), "message": str(error["msg"])[:MESSAGE_MAX]}
    for name, allowed in _ALLOWED.items():
        if name in context:
            result["allowed"] = allowed.format(context[name])
    return result


_ALLOWED = {
    "expected": "{}",
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lt": "less than {}",
    "min_length": "at least {} long",
    "max_length": "at most {} long",
    "pattern": "matches {}",
}
