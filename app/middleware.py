"""What every request passes before the routes, as pure ASGI: admin token, request id, body limit."""

from __future__ import annotations

import re
import uuid
from urllib.parse import quote, unquote_plus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems import Problem
from telemetry import bind

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
"""What is taken over from `X-Request-ID`: it goes into logs, spans and rows."""

TOKEN_IN_PATH = re.compile(r"(admin_token=)[^&/]+", re.IGNORECASE)


class AdminTokenMiddleware:
    """Takes `?admin_token=` out of the query string, so that no log and no span can ever hold it.

    The server logs the same scope once the answer has begun, so it is changed in place. The token stays in
    `scope["spanledger.admin_token"]`; of several the last counts.

    PowerShell takes `"…/$userId?limit=20&…"` for a variable named `userId?limit`, so the token ends up in the
    path: there it is removed, and not used.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("query_string"):
            kept = []
            for part in scope["query_string"].split(b"&"):
                name, _, value = part.partition(b"=")
                if unquote_plus(name.decode("latin-1")).strip().lower() == "admin_token":
                    scope["spanledger.admin_token"] = unquote_plus(value.decode("latin-1"))
                else:
                    kept.append(part)
            scope["query_string"] = b"&".join(kept)
        if TOKEN_IN_PATH.search(scope.get("path", "")):
            scope["path"] = TOKEN_IN_PATH.sub(r"\1", scope["path"])
            scope["raw_path"] = quote(scope["path"]).encode()
        await self.app(scope, receive, send)


class RequestIdMiddleware:
    """Takes a valid `X-Request-ID` or makes one, binds it for everything inside and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope["spanledger.request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with bind(request_id=request_id):
            await self.app(scope, receive, send_with_id)


class BodyLimitMiddleware:
    """Answers 413 to a request body over `max_bytes`, by its declared length or as it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.detail = f"The body is larger than {max_bytes} bytes; the setting MAX_BODY_BYTES allows no more."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            await Problem(413, "Content Too Large", self.detail).response(scope)(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.max_bytes:
                    raise HTTPException(413, self.detail)  # FastAPI lets no other kind pass here
            return message

        await self.app(scope, receive_limited, send)
