"""A long outage: memory while a million rows wait in the spool, and how fast they are stored afterwards.

One process spools executions of 1 KB in and 1 KB out, with a sink whose every connection is refused, and
SPOOL_MAX_BYTES of 4 GiB. Memory is what the process has of its own (RssAnon of proc(5)); pages of the spool's files
belong to the kernel and can be dropped by it, and are shown beside. Then Postgres (the embedded server) is back, and
the sink loads what waits, roll-up included, on the same processors. The rows are that of one monitored execution with
a span id each, appended as the processor does: a million monitored calls would measure the calls.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from prometheus_client import CollectorRegistry

from app.database import Database
from bench.call import IDS, PAYLOADS
from bench.figure import Figure
from bench.postgres import embedded
from telemetry import AgentMonitor, configure
from telemetry.spool import EXECUTIONS, Spool, SpoolError

ROWS = 1_000_000
WARM_UP = 10_000
STORED_ROWS = 200_000
MEBIBYTE = 1 << 20


def run() -> Iterator[Figure]:
    """Memory, then speed."""
    with embedded() as url, tempfile.TemporaryDirectory() as directory:
        database = Database(url)
        database.migrate()
        database.ensure_partitions()
        away = True

        def connect() -> psycopg.Connection[Any]:
            if away:
                raise psycopg.OperationalError("away")
            return database.sink_connection()

        telemetry = configure(
            spool_dir=Path(directory), connect=connect, registry=CollectorRegistry(), spool_max_bytes=4 << 30
        )
        spool, sink = telemetry.spool, telemetry.sink
        assert sink is not None
        with AgentMonitor().execution("flashcard_generation", version="1", input=PAYLOADS[0][0], **IDS) as execution:
            execution.output = PAYLOADS[0][1]
        spool.seal()
        head, tail = spool.ready()[0].read(EXECUTIONS).split(execution.span_id.encode())
        for number in range(WARM_UP):
            _append(spool, b"%s%016x%s" % (head, number, tail))
        telemetry.flush()
        before = _memory()
        begin = time.perf_counter()
        for number in range(WARM_UP, ROWS):
            _append(spool, b"%s%016x%s" % (head, number, tail))
        spooled = time.perf_counter() - begin
        telemetry.flush()
        after = _memory()
        yield Figure("memory growth over 1 000 000 waiting rows", "MiB", [_growth(before, after, "RssAnon")], 50, 20)
        yield Figure("pages of the spool's files in memory", "MiB", [after.get("RssFile", 0) / MEBIBYTE])
        yield Figure("rows spooled a second", "1/s", [(ROWS - WARM_UP) / spooled])
        away = False
        begin = time.perf_counter()
        while sink.stored[EXECUTIONS] < STORED_ROWS:
            telemetry.flush(1.0)
        seconds = time.perf_counter() - begin
        yield Figure("rows stored a second after the outage", "1/s", [sink.stored[EXECUTIONS] / seconds])
        yield Figure("memory growth while they are stored", "MiB", [_growth(before, _memory(), "RssAnon")])
        telemetry.shutdown(0.0)
        database.dispose()


def _append(spool: Spool, line: bytes) -> None:
    """As soon as the disk keeps up: nothing else is done here, so rows come faster than it takes them."""
    while True:
        try:
            spool.append(EXECUTIONS, line)
            return
        except SpoolError as error:
            if error.reason != "disk_stalled":
                raise
            time.sleep(0.05)


def _growth(before: dict[str, int], after: dict[str, int], name: str) -> float:
    return (after[name] - before[name]) / MEBIBYTE


def _memory() -> dict[str, int]:
    """Bytes of this process, by the names of proc(5)."""
    text = Path("/proc/self/status").read_text()
    return {name: int(kilobytes) * 1024 for name, kilobytes in re.findall(r"(Rss\w+):\s+(\d+) kB", text)}
