from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from app import logs


@pytest.fixture(autouse=True)
def _logging_restored() -> Iterator[None]:
    """Logging as it was: `create_app` takes it over."""
    loggers = [logging.getLogger(name) for name in ("", *logs.UVICORN, *logs.NOISY)]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
