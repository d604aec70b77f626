"""Rows a second of the sink, roll-up included, beside raw binary COPY of the same rows into the same table.

Rows of `agent_executions` with 1 KB in and 1 KB out: 5 agents, 2 models, durations from 10 ms to 100 s, so that a
batch adds some hundred rows to the roll-up. The sink reads sealed segments, loads, commits and removes them. Raw COPY
is asyncpg's `copy_records_to_table` with records made beforehand, a transaction for as many rows as the sink's batch
has. The default table has the same columns and indexes without `toast_tuple_target` and lz4 (which the embedded server
lacks); jsonb is that with both payloads as jsonb. All in turns on one server, the table truncated and a checkpoint made
before each turn; client and server share the processors. CPU is that of this process and of its backend, together.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import psycopg
from sqlalchemy import BigInteger, Boolean, DateTime, Double, Numeric, make_url

from app.database import Database
from app.tables import agent_executions
from bench.figure import Figure, ratios
from bench.payloads import messages
from bench.postgres import servers
from telemetry import copytext
from telemetry.caller import Caller
from telemetry.execution import EXECUTION_COLUMNS, Execution, Identity, Service
from telemetry.guard import Guard
from telemetry.sink import BATCH_BYTES, PostgresSink
from telemetry.spool import EXECUTIONS, Spool
from telemetry.usage import Usage

ROWS = 12_000
ROUNDS = 11
DEFAULTS = """
CREATE TABLE {name} (LIKE agent_executions INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)
    PARTITION BY RANGE (created_at);
CREATE TABLE {name}_all PARTITION OF {name} DEFAULT
"""
JSONB = "ALTER TABLE in_jsonb ALTER input_data TYPE jsonb USING NULL, ALTER output_data TYPE jsonb USING NULL"
CONVERTERS: dict[type, Callable[[str], Any]] = {
    DateTime: datetime.fromisoformat,
    Boolean: lambda text: text == "t",
    Double: float,
    BigInteger: int,
    Numeric: Decimal,
}


def run() -> Iterator[Figure]:
    """Both servers, where there are two."""
    lines = _lines()
    with tempfile.TemporaryDirectory() as spool_dir:
        for name, start in servers().items():
            with start() as url:
                yield from _compare(name, url, lines, Path(spool_dir) / name.replace(" ", ""))


def _compare(server: str, url: str, lines: list[bytes], spool_dir: Path) -> Iterator[Figure]:
    database = Database(url)
    database.migrate()
    name, host = make_url(url).database, str(make_url(url).query["host"])
    with psycopg.connect(user="postgres", dbname=name, host=host, autocommit=True) as owner, asyncio.Runner() as runner:
        for table in ("in_text", "in_jsonb"):
            owner.execute(DEFAULTS.format(name=table).encode())
        owner.execute(JSONB)
        raw = runner.run(asyncpg.connect(user="postgres", database=name, host=host))
        spool = Spool(spool_dir)
        sink = PostgresSink(spool, database.sink_connection, Guard())
        records = [_record(line) for line in lines]
        batch = BATCH_BYTES // len(lines[0])

        async def copy(table: str) -> None:
            for first in range(0, len(records), batch):
                await raw.copy_records_to_table(
                    table, records=records[first : first + batch], columns=EXECUTION_COLUMNS
                )

        def load() -> None:
            if not sink.drain(60.0):
                raise RuntimeError("the sink did not drain")

        spool.append(EXECUTIONS, lines[0])
        load()  # connects
        assert sink._connection is not None
        ours, theirs = sink._connection.info.backend_pid, raw.get_server_pid()
        turns: list[tuple[str, str, int, Callable[[], None]]] = [
            ("sink", "agent_executions", ours, load),
            ("raw COPY", "agent_executions", theirs, lambda: runner.run(copy("agent_executions"))),
            ("raw COPY, default table", "in_text", theirs, lambda: runner.run(copy("in_text"))),
            ("raw COPY, default table, jsonb", "in_jsonb", theirs, lambda: runner.run(copy("in_jsonb"))),
        ]
        rates: dict[str, list[float]] = {what: [] for what, *_ in turns}
        cpu: dict[str, list[float]] = {what: [] for what, *_ in turns}
        for number in range(ROUNDS + 1):
            for what, table, backend, turn in turns:
                if turn is load:
                    for line in lines:
                        spool.append(EXECUTIONS, line)
                    spool.seal()
                owner.execute("TRUNCATE agent_executions, execution_rollup, in_text, in_jsonb")
                owner.execute("CHECKPOINT")
                used, begin = _cpu(backend), time.perf_counter()
                turn()
                rates[what].append(ROWS / (time.perf_counter() - begin))
                cpu[what].append((_cpu(backend) - used) / ROWS * 1e6)
                (stored,) = owner.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() or (0,)
                if stored != ROWS:
                    raise RuntimeError(f"{what}: {stored} of {ROWS} rows are there")
            if number == 0:  # the warm-up
                rates = {what: [] for what in rates}
                cpu = {what: [] for what in cpu}
            turns.append(turns.pop(0))
        sink.stop(0.0)
        spool.close()
        runner.run(raw.close())
    database.dispose()
    yield Figure(f"{server}: sink / raw COPY", "×", ratios(rates["sink"], rates["raw COPY"]), 0.8, 0.95, at_least=True)
    yield Figure(f"{server}: tuned / default table", "×", ratios(rates["raw COPY"], rates["raw COPY, default table"]))
    yield Figure(
        f"{server}: tuned / default table, jsonb",
        "×",
        ratios(rates["raw COPY"], rates["raw COPY, default table, jsonb"]),
        1.5,
        1.8,
        at_least=True,
    )
    for what, values in rates.items():
        yield Figure(f"{server}: {what}", "rows/s", values)
    for what in ("sink", "raw COPY"):
        yield Figure(f"{server}: {what}, CPU", "µs/row", cpu[what])


def _cpu(backend: int) -> float:
    """Seconds of CPU that this process and the backend have used."""
    ticks = Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[11:13]  # user, system
    return time.process_time() + sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def _lines() -> list[bytes]:
    dice = random.Random(1)
    payloads = [orjson.dumps(message) for message in messages(64)]
    caller = Caller(
        "18717267-0855-433c-b160-04c3443daa80", "8f14e45f-ceea-467f-9575-3f2b2a1f0c11", "c9f0f895fb98ab9159f5"
    )
    service = Service("tutor", "school", "1.2.0", "production", "2f0a3e9c-4f0c-4d2a-9b1e-5b6c7d8e9f00")
    now = time.time_ns()
    made = []
    for number in range(ROWS):
        ended, duration = now - (ROWS - number) * 1_000_000, int(10 ** dice.uniform(7, 11))
        trace_id, span_id = f"{dice.getrandbits(128):032x}", f"{dice.getrandbits(64):016x}"
        status, error = ("failure", "TimeoutError") if number % 50 == 0 else ("success", None)
        times = ended - duration, ended
        identity = Identity(trace_id, span_id, None, *times, status, error, None, 0.25, caller, service, b"{}")
        usage = Usage(dice.randrange(100, 2000), 400, 0, dice.randrange(10, 500), 20, Decimal("0.00345"), "local")
        agent, model = f"agent_{dice.randrange(5)}", dice.choice(("gpt-4o", "gpt-4o-mini"))
        given, answer = dice.choice(payloads), dice.choice(payloads)
        made.append(Execution(identity, agent, "1", None, usage, usage, model, "openai", False, given, answer).line())
    return made


def _record(line: bytes) -> tuple[Any, ...]:
    """What asyncpg takes for this line."""
    record = []
    for name, value in zip(EXECUTION_COLUMNS, copytext.values(line, len(EXECUTION_COLUMNS)), strict=True):
        convert = CONVERTERS.get(type(agent_executions.c[name].type), str)
        record.append(None if value is None else convert(value))
    return tuple(record)
