"""The four kinds of Python function, each run inside an execution.

A generator's body runs in its consumer's context, so the span is made current around each step only: held across a
`yield` it would leak into the consumer, and be detached in another task.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from .monitor import Run
    from .scope import Current

F = TypeVar("F", bound=Callable[..., Any])
_KEPT = 1 << 18  # characters of a stream kept for its output, which is capped anyway
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def wrap(function: F, start: Callable[[Any], Run]) -> F:
    """`function` with each call inside the run that `start` makes of the call's arguments."""
    if isinstance(function, staticmethod | classmethod):
        return cast(F, type(function)(wrap(function.__func__, start)))
    parameters = list(inspect.signature(function).parameters.values())
    skip = 1 if parameters and parameters[0].name in ("self", "cls") else 0
    names = [parameter.name for parameter in parameters[skip:] if parameter.kind in _POSITIONAL]
    rest = next((parameter.name for parameter in parameters if parameter.kind is parameter.VAR_POSITIONAL), "args")
    is_object = not (inspect.isroutine(function) or isinstance(function, functools.partial))
    body = type(function).__call__ if is_object else function  # an object's kind is that of its `__call__`

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        given = args[skip:]
        payload = dict(zip(names, given, strict=False))
        if len(given) > len(names):
            payload[rest] = given[len(names) :]
        payload.update(kwargs)
        return start(payload)

    if inspect.isasyncgenfunction(body):
        return cast(F, _async_generator(function, begin))
    if inspect.isgeneratorfunction(body):
        return cast(F, _generator(function, begin))
    if inspect.iscoroutinefunction(body):

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            with begin(args, kwargs) as run:
                result = await function(*args, **kwargs)
                run.returned(result)
                return result

        return cast(F, coroutine)

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with begin(args, kwargs) as run:
            result = function(*args, **kwargs)
            run.returned(result)
            return result

    return cast(F, plain)


def _generator(function: Callable[..., Any], begin: Callable[..., Run]) -> Callable[..., Any]:
    @functools.wraps(function)
    def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with _Stream(begin(args, kwargs)) as stream:
            inner: Generator[Any, Any, Any] = function(*args, **kwargs)
            step: Callable[[], Any] = functools.partial(next, inner)
            try:
                while True:
                    try:
                        with stream.current():
                            item = step()
                    except StopIteration as stop:
                        return stop.value
                    stream.chunk(item)
                    try:
                        step = functools.partial(inner.send, (yield item))
                    except GeneratorExit:
                        raise
                    except BaseException as error:
                        step = functools.partial(inner.throw, error)
            finally:
                with stream.current():
                    inner.close()

    return generator


def _async_generator(function: Callable[..., Any], begin: Callable[..., Run]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        with _Stream(begin(args, kwargs)) as stream:
            inner: AsyncGenerator[Any, Any] = function(*args, **kwargs)
            step: Callable[[], Any] = inner.__anext__
            try:
                while True:
                    try:
                        with stream.current():
                            item = await step()
                    except StopAsyncIteration:
                        return
                    stream.chunk(item)
                    try:
                        step = functools.partial(inner.asend, (yield item))
                    except GeneratorExit:
                        raise
                    except BaseException as error:
                        step = functools.partial(inner.athrow, error)
            finally:
                with stream.current():
                    await inner.aclose()

    return generator


class _Stream:
    """The run of a generator: its span is current only while the body runs, and its chunks are the output."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._chunks: list[Any] = []
        self._count = 0
        self._length = 0

    def __enter__(self) -> _Stream:
        self._run.open()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._count > len(self._chunks):
            self._chunks.append(f"… [{self._count - len(self._chunks)} more chunks]")
        if all(isinstance(chunk, str) for chunk in self._chunks):
            self._run.returned("".join(self._chunks))
        else:
            self._run.returned(self._chunks)
        self._run.close(error)

    def current(self) -> Current:
        return self._run.current()

    def chunk(self, item: Any) -> None:
        self._run.first_chunk()
        self._count += 1
        if self._length < _KEPT:
            self._chunks.append(item)
        self._length += len(item) if isinstance(item, str) else 100
