"""A local server that speaks OpenAI's chat-completions protocol, for tests through the official client.

    with OpenAIServer() as server:
        server.fail(Fault.RATE_LIMITED, times=3)
        ...  # a client with base_url=server.base_url
        assert server.usage == ReportedUsage(requests=1, input_tokens=12, ...)

The answer is `server.text`, or `server.json` where the request asks for a JSON object.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum, auto
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

CARDS_AND_QUESTIONS: dict[str, Any] = {
    "cards": [{"front": "What is Python?", "back": "A language"}, {"front": "2 + 2", "back": "4"}],
    "questions": [{"question": "Python is a …", "options": ["language", "planet"], "answer": "language"}],
}


class Fault(Enum):
    """What goes wrong with a request. Answers with an error status ask the client to retry after 1 ms."""

    RATE_LIMITED = auto()  # 429
    REFUSED = auto()  # 401
    SERVER_ERROR = auto()  # 500
    DROPPED = auto()  # the connection is cut in the middle of the answer
    CUT_SHORT = auto()  # a stream that ends properly, but without a finish reason and usage
    SLOW = auto()  # `delay_seconds` before the answer begins and before each further chunk
    INVALID_JSON = auto()  # the answer is a piece of JSON that never closes
    WRONG_SHAPE = auto()  # the answer is JSON of another shape
    EMPTY = auto()  # the answer has no text


@dataclass
class ReportedUsage:
    """The sum of all usage the server has reported to its clients."""

    requests: int = 0
    input_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class OpenAIServer:
    """Listens on a random loopback port while the `with` block lasts.

    Per answer the usage is: a token per four characters of the messages as sent, half of them cached; a token
    per word of the answer, and two for reasoning.
    """

    def __init__(self) -> None:
        self.text = "Python is a programming language."
        self.json = CARDS_AND_QUESTIONS
        self.delay_seconds = 0.2
        self.requests: list[dict[str, Any]] = []
        self.traceparents: list[str] = []
        self.usage = ReportedUsage()
        self._faults: deque[Fault] = deque()

    def fail(self, fault: Fault, times: int = 1) -> None:
        """Let the next requests go wrong; several faults are used up in the order given."""
        self._faults.extend([fault] * times)

    def __enter__(self) -> Self:
        self._serving = serve(self._answer)
        self.base_url = self._serving.__enter__() + "/v1"
        return self

    def __exit__(self, *exception: object) -> None:
        self._serving.__exit__(None, None, None)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan")  # tells the server that there is none
        assert scope["path"] == "/v1/chat/completions", scope["path"]
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        request = json.loads(body)
        self.requests.append(request)
        self.traceparents += [value.decode() for name, value in scope["headers"] if name == b"traceparent"]
        fault = self._faults.popleft() if self._faults else None
        if fault in _ERRORS:
            status, kind = _ERRORS[fault]
            error = {"error": {"message": f"simulated {kind}", "type": kind, "param": None, "code": kind}}
            await _send_json(send, error, status, (b"retry-after-ms", b"1"))
            return
        text = self._text(request, fault)
        if request.get("stream"):
            await self._stream(send, request, text, fault)
        else:
            if fault is Fault.SLOW:
                await asyncio.sleep(self.delay_seconds)
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            usage = {} if fault is Fault.DROPPED else {"usage": self._report(request, text)}
            answer = {**_head(request, "chat.completion"), "choices": [choice], **usage}
            await _send_json(send, answer, cut=fault is Fault.DROPPED)

    def _text(self, request: dict[str, Any], fault: Fault | None) -> str:
        if fault in _TEXTS:
            return _TEXTS[fault]
        return json.dumps(self.json) if "response_format" in request else self.text

    async def _stream(self, send: Send, request: dict[str, Any], text: str, fault: Fault | None) -> None:
        head = _head(request, "chat.completion.chunk")
        content_type = [(b"content-type", b"text/event-stream")]
        if fault is Fault.SLOW:
            await asyncio.sleep(self.delay_seconds)
        await send({"type": "http.response.start", "status": 200, "headers": content_type})

        async def chunk(choices: list[dict[str, Any]], **more: Any) -> None:
            data = json.dumps({**head, "choices": choices, **more})
            body = f"data: {data}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        for number, word in enumerate(text.split()):
            if number and fault is Fault.SLOW:
                await asyncio.sleep(self.delay_seconds)
            if number and fault is Fault.DROPPED:
                raise ConnectionAbortedError  # uvicorn closes the connection without a last chunk
            content = word if number == 0 else " " + word
            await chunk([{"index": 0, "delta": {"content": content}, "finish_reason": None}])
        if fault is not Fault.CUT_SHORT:
            await chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}])
            if (request.get("stream_options") or {}).get("include_usage"):
                await chunk([], usage=self._report(request, text))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _report(self, request: dict[str, Any], text: str) -> dict[str, Any]:
        prompt = sum(len(message["content"]) for message in request["messages"]) // 4
        completion = len(text.split()) + 2
        self.usage.requests += 1
        self.usage.input_tokens += prompt
        self.usage.cache_read_tokens += prompt // 2
        self.usage.output_tokens += completion
        self.usage.reasoning_tokens += 2
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": prompt // 2},
            "completion_tokens_details": {"reasoning_tokens": 2},
        }

    def __repr__(self) -> str:
        return f"OpenAIServer({asdict(self.usage)})"


_ERRORS: dict[Fault | None, tuple[int, str]] = {
    Fault.RATE_LIMITED: (429, "rate_limit_exceeded"),
    Fault.REFUSED: (401, "invalid_api_key"),
    Fault.SERVER_ERROR: (500, "server_error"),
}
_TEXTS: dict[Fault | None, str] = {
    Fault.INVALID_JSON: '{"cards": [',
    Fault.WRONG_SHAPE: '{"cards": [{"question": "?"}], "questions": [{"answer": "?"}]}',
    Fault.EMPTY: "",
}


def _head(request: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1_800_000_000, "model": request["model"] + "-2026"}


async def _send_json(
    send: Send, content: object, status: int = 200, *headers: tuple[bytes, bytes], cut: bool = False
) -> None:
    body = json.dumps(content).encode()
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    if cut:
        await send({"type": "http.response.body", "body": body[:20], "more_body": True})
        raise ConnectionAbortedError
    await send({"type": "http.response.body", "body": body})


@contextmanager
def serve(app: ASGIApp) -> Iterator[str]:
    """Serve an ASGI application on a random loopback port, in a thread; gives `http://127.0.0.1:PORT`."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, interface="asgi3", log_level="critical", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < deadline, "the server took more than 10 s to start"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
