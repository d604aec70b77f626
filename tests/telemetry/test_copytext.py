"""Every value arrives in Postgres as it was written, whatever characters are in it."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.database import Database
from telemetry import copytext
from telemetry.caller import Caller
from telemetry.execution import Service
from telemetry.semconv import Status
from telemetry.spool import EXECUTIONS, STEPS
from telemetry.usage import Usage
from tests.telemetry.stored import EXECUTION_ROW, STEP_ROW, execution, nanoseconds, rows, sink, step

AWKWARD = [
    "",
    " ",
    "tab\there",
    "line\nbreak\r\nand return\r",
    "back\\slash \\n \\t \\",
    "\\N",
    "\\.",
    "\"quotes\" 'single' $$dollar$$ %s {}",
    "emoji 🦉 combined é and right-to-left \u202e",
    "\x01\x0b\x0c\x1b\x1c\x1e\x7f\x85\u2028\u2029\ufeff",
]
LONG = {"text": 'ünï"\\\n' * 1500, "list": list(range(500))}


def arrived(value: str) -> str:
    """What Postgres can hold of a text: NUL is replaced, and what UTF-8 cannot say."""
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def store(database: Database, directory: Path, **lines: bytes) -> None:
    with sink(directory, database.sink_connection) as drained:
        for table, line in lines.items():
            drained.spool.append(table, line)
        assert drained.drain()
        assert drained.rejected == {"constraint": 0, "data": 0, "timestamp": 0}


def clear(database: Database) -> None:
    with database.sink_connection() as connection:
        connection.execute("RESET ROLE")
        connection.execute("TRUNCATE agent_executions, execution_steps")


def test_a_row_with_everything(database: Database, tmp_path: Path) -> None:
    own = Usage(900, 400, 50, 120, 20, Decimal("0.0000000012345"), "provider")
    total = Usage(2**53, 400, 50, 120, 20, Decimal("123456789012345.123456789"), "mixed")
    payload = orjson.dumps(LONG)
    assert len(payload) > 8192
    identity: dict[str, Any] = {
        "parent_span_id": "00000000000000f1",
        "status": Status.TIMEOUT,
        "error_type": "TimeoutError",
        "error_message": "too\nlate",
        "time_to_first_chunk": 0.1234567,
        "attributes": b'{"a":"\\n\\\\N","b":[1,null,"\xf0\x9f\xa6\x89"]}',
    }
    run = execution(
        agent_version="2",
        parent_agent_span_id="00000000000000f0",
        own=own,
        total=total,
        model="gpt-4o",
        provider="openai",
        late=True,
        input=payload,
        output=b'"\\\\N"',
        **identity,
    )
    call = step(
        operation="execute_tool",
        tool_name="search",
        request_model="gpt-4o",
        response_model="gpt-4o-2024-08-06",
        provider="openai",
        usage=own,
        input=payload,
        output=b"null",
        **identity,
    )
    store(database, tmp_path, **{EXECUTIONS: run._replace(late=False).line(), STEPS: call.line()})
    both = {
        **{"parent_span_id": "00000000000000f1", "status": "timeout", "time_to_first_chunk_ms": 123.457},
        **{"error_type": "TimeoutError", "error_message": "too\nlate"},
        "attributes": {"a": "\n\\N", "b": [1, None, "🦉"]},
        **{"input_tokens": 900, "cache_read_tokens": 400, "cache_write_tokens": 50},
        **{"output_tokens": 120, "reasoning_tokens": 20, "cost_usd": Decimal("0.0000000012345")},
        "provider": "openai",
        "input_data": payload.decode(),
    }
    assert rows(database, EXECUTIONS) == [
        EXECUTION_ROW
        | both
        | {
            **{"agent_version": "2", "parent_agent_span_id": "00000000000000f0", "is_root": False},
            **{"tokens_used": 1020, "tokens_total": 2**53 + 120, "model_used": "gpt-4o"},
            "cost_total_usd": Decimal("123456789012345.123456789"),
            **{"cost_source": "mixed", "output_data": '"\\\\N"'},
        }
    ]
    assert rows(database, STEPS) == [
        STEP_ROW
        | both
        | {
            **{"operation": "execute_tool", "tool_name": "search", "cost_source": "provider", "output_data": "null"},
            **{"request_model": "gpt-4o", "response_model": "gpt-4o-2024-08-06"},
        }
    ]


def texts(values: list[str]) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    """Rows with these texts in every text column, and what is stored of them."""
    take = iter(values)
    names = ("user_id", "session_id", "request_id", "service_name", "service_namespace", "service_version")
    shared = {name: next(take) for name in (*names, "environment", "instance_id", "error_type", "error_message")}
    document: dict[str, str | list[str]] = {"key": values[0], values[1]: values}
    encoded = orjson.dumps({arrived(key): _arrived(item) for key, item in document.items()})
    identity: dict[str, Any] = {
        "caller": Caller(shared["user_id"], shared["session_id"], shared["request_id"]),
        "service": Service(*(shared[name] for name in ("service_name", *names[4:], "environment", "instance_id"))),
        **{"error_type": shared["error_type"], "error_message": shared["error_message"], "attributes": encoded},
    }
    own = {name: next(take) for name in ("agent_name", "agent_version", "model", "provider")}
    called = {name: next(take) for name in ("agent_name", "tool_name", "request_model", "response_model", "provider")}
    payload = orjson.dumps(_arrived(values))
    lines = {
        EXECUTIONS: execution(**own, **identity, input=payload, output=encoded).line(),
        STEPS: step(operation=values[0], **called, **identity, input=payload, output=encoded).line(),
    }
    renamed = {"model_used" if name == "model" else name: value for name, value in own.items()}
    common = {name: arrived(value) for name, value in shared.items()} | {
        **{"attributes": orjson.loads(encoded), "input_data": payload.decode(), "output_data": encoded.decode()}
    }
    return lines, {
        EXECUTIONS: EXECUTION_ROW | common | {name: arrived(value) for name, value in renamed.items()},
        STEPS: STEP_ROW
        | common
        | {name: arrived(value) for name, value in called.items()}
        | {"operation": arrived(values[0])},
    }


def _arrived(value: str | list[str]) -> str | list[str]:
    return arrived(value) if isinstance(value, str) else [arrived(item) for item in value]


TEXT_COLUMNS = 19


@pytest.mark.parametrize("shift", range(len(AWKWARD)))
def test_awkward_texts_in_every_column(database: Database, tmp_path: Path, shift: int) -> None:
    lines, expected = texts([AWKWARD[(shift + index) % len(AWKWARD)] for index in range(TEXT_COLUMNS)])
    store(database, tmp_path, **lines)
    assert {table: rows(database, table) for table in lines} == {table: [row] for table, row in expected.items()}


def test_nul_and_lone_surrogates_are_replaced(database: Database, tmp_path: Path) -> None:
    run = execution(agent_name="a\0b", error_message="half \ud83e of a pair \udd89")
    store(database, tmp_path, **{EXECUTIONS: run.line()})
    replaced = {"agent_name": "a\ufffdb", "error_message": "half ? of a pair ?"}
    assert rows(database, EXECUTIONS) == [EXECUTION_ROW | replaced]


any_text = st.text(st.characters(), max_size=40) | st.sampled_from(AWKWARD)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_text, min_size=TEXT_COLUMNS, max_size=TEXT_COLUMNS))
def test_any_text_arrives(database: Database, tmp_path: Path, values: list[str]) -> None:
    clear(database)
    lines, expected = texts(values)
    store(database, tmp_path, **lines)
    assert {table: rows(database, table) for table in lines} == {table: [row] for table, row in expected.items()}


any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_json, any_json)
def test_any_json_arrives(database: Database, tmp_path: Path, given_input: object, output: object) -> None:
    clear(database)
    payloads = orjson.dumps(given_input), orjson.dumps(output)
    lines = {
        EXECUTIONS: execution(input=payloads[0], output=payloads[1]).line(),
        STEPS: step(input=payloads[1], output=payloads[0]).line(),
    }
    store(database, tmp_path, **lines)
    texts = payloads[0].decode(), payloads[1].decode()
    assert rows(database, EXECUTIONS) == [EXECUTION_ROW | {"input_data": texts[0], "output_data": texts[1]}]
    assert rows(database, STEPS) == [STEP_ROW | {"input_data": texts[1], "output_data": texts[0]}]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, None),
        (Decimal("0.10"), "0.10"),
        (Decimal("1E-9"), "1E-9"),
    ],
)
def test_numbers(value: Decimal | None, written: str | None) -> None:
    assert copytext.number(value) == written


@given(st.datetimes(datetime(1970, 1, 1), datetime(2999, 12, 31)), st.integers(0, 999))
def test_timestamps_are_floored_to_microseconds(moment: datetime, rest: int) -> None:
    moment = moment.replace(tzinfo=UTC)
    assert datetime.fromisoformat(copytext.timestamp(nanoseconds(moment) + rest)) == moment


def test_timestamps_of_one_second_and_the_next() -> None:
    second = nanoseconds(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert [copytext.timestamp(second + offset) for offset in (0, 999_999_999, 1_000_000_000, -1)] == [
        "2026-12-31 23:59:59.000000+00",
        "2026-12-31 23:59:59.999999+00",
        "2027-01-01 00:00:00.000000+00",
        "2026-12-31 23:59:58.999999+00",
    ]


def test_documents_follow_the_columns() -> None:
    assert copytext.line(("a", None), (b'{"x":"\\n"}', None, b"1")) == b'a\t\\N\t{"x":"\\\\n"}\t\\N\t1\n'


@pytest.mark.parametrize(
    ("columns", "written"),
    [
        (("a", "b"), "a\tb"),
        (("tab\t", None), "tab\\t\t\\N"),
        (("\\N", None), "\\\\N\t\\N"),
        ((None, "line\nfeed"), "\\N\tline\\nfeed"),
        (("re\rturn", "NUL\0"), "re\\rturn\tNUL\ufffd"),
        (("\ud800", "é"), "?\té"),
    ],
)
def test_columns_are_escaped_and_none_is_null(columns: tuple[str | None, ...], written: str) -> None:
    assert copytext.line(columns, ()) == f"{written}\n".encode()


@given(st.lists(st.none() | st.text() | st.sampled_from(AWKWARD), min_size=1, max_size=8))
def test_a_line_is_read_as_it_was_written(values: list[str | None]) -> None:
    line = copytext.line(tuple(values), (b'"not read\\n"', None))
    assert copytext.values(line, len(values)) == [None if value is None else arrived(value) for value in values]


def test_a_torn_line_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^2 of 3 columns$"):
        copytext.values(b"a\tb", 3)


@pytest.mark.parametrize("end", [0, 999, 999_999_999, 1_000_000_000, 61_500_000_000])
@pytest.mark.parametrize("start", [-1, 0, 5_000, 999_999_999])
def test_a_period_is_two_timestamps(start: int, end: int) -> None:
    second = 1_700_000_000_000_000_000
    copytext.timestamp(second)
    assert copytext.period(second + start, second + end) == "\t".join(
        copytext.timestamp(second + offset) for offset in (start, end)
    )
