from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from app.settings import Settings, SettingsError, default_data_dir, is_loopback

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdefghijABCDEFGHIJxy"
ADVICE = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe())'"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """An environment without any setting, in an empty directory."""
    before = dict(os.environ)
    for name in before:
        if name.lower() in Settings.model_fields:
            del os.environ[name]
    monkeypatch.chdir(tmp_path)
    yield monkeypatch
    os.environ.clear()
    os.environ.update(before)


def why(**variables: str) -> list[str]:
    """The lines that refuse these variables."""
    os.environ.update(variables)
    with pytest.raises(SettingsError) as refused:
        Settings.load()
    return str(refused.value).splitlines()


def test_without_any_setting_the_service_is_local_and_embedded() -> None:
    settings = Settings.load()
    assert (settings.host, settings.port, settings.database_url) == ("127.0.0.1", 8000, None)
    assert settings.admin_tokens() == ()
    assert settings.spanledger_data_dir == default_data_dir()


def test_the_data_directory_is_the_systems_for_root_and_the_users_otherwise(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setattr(os, "geteuid", lambda: 0)
    assert default_data_dir() == Path("/var/lib/spanledger")
    environment.setattr(os, "geteuid", lambda: 1000)
    assert default_data_dir() == Path(platformdirs.user_data_dir("spanledger"))


def test_the_environment_wins_over_the_file_and_empty_means_unset(environment: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("PORT=9001\nOPENAI_MODEL=small\nHOST=\nUNKNOWN_TO_US=1\n")
    environment.setenv("PORT", "9002")
    environment.setenv("OPENAI_MODEL", "")
    settings = Settings.load()
    assert (settings.host, settings.port, settings.openai_model) == ("127.0.0.1", 9002, "small")


def test_a_byte_order_mark_as_notepad_writes_it_is_not_a_part_of_the_first_name() -> None:
    Path(".env").write_bytes(b"\xef\xbb\xbfPORT=9001\r\n")
    assert Settings.load().port == 9001


def test_a_file_in_another_encoding_is_refused() -> None:
    Path(".env").write_text("PORT=9001\n", "utf-16")
    with pytest.raises(SettingsError, match=r"^\.env is not UTF-8; save it again with that encoding$"):
        Settings.load()


def test_several_admin_tokens(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ADMIN_TOKEN", f"{TOKEN}, {TOKEN[::-1]},")
    assert Settings.load().admin_tokens() == (TOKEN, TOKEN[::-1])


def test_values_of_every_kind_are_read(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod, team=a%2Cb")
    environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=s%20t")
    environment.setenv("REDACT_PATTERNS", r"\bACC-\d{3,9}; x\x3by ;")
    environment.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    environment.setenv("LOG_LEVEL", "INFO")
    settings = Settings.load()
    assert settings.otel_resource_attributes == {"deployment.environment.name": "prod", "team": "a,b"}
    assert settings.otlp_headers() == {"x-key": "s t"}
    assert settings.redact_patterns == (r"\bACC-\d{3,9}", r"x\x3by")
    assert settings.capture_content()
    assert settings.log_level == "info"


def test_every_wrong_value_is_a_line_that_says_what_is_allowed() -> None:
    assert why(
        PORT="http",
        OTEL_TRACES_SAMPLER_ARG="2",
        SPOOL_MAX_BYTES="5",
        AGENT_TIMEOUT_SECONDS="nan",
        LOG_LEVEL="loud",
        DATABASE_URL="mysql://u:hunter2@db/x",
        OPENAI_BASE_URL="localhost",
        OTEL_RESOURCE_ATTRIBUTES="team",
        REDACT_PATTERNS="a;(",
    ) == [
        "PORT must be a whole number, at least 1, at most 65535",
        "DATABASE_URL is not a Postgres URL; allowed: postgresql://user:password@host:5432/database",
        "OPENAI_BASE_URL is not a URL; allowed: http://host:port/path or https://host/path",
        "OTEL_RESOURCE_ATTRIBUTES is not a list of pairs; allowed: key=value,key=value",
        "OTEL_TRACES_SAMPLER_ARG must be a number, at least 0, at most 1",
        "SPOOL_MAX_BYTES must be a whole number, at least 1048576",
        "REDACT_PATTERNS has no valid regular expression as number 2: missing ), unterminated subpattern at position 0",
        "AGENT_TIMEOUT_SECONDS must be a number, more than 0, at most 3600",
        "LOG_LEVEL has an unknown value; allowed: 'debug', 'info', 'warning', 'error' or 'critical'",
    ]


@pytest.mark.parametrize("name", ["ADMIN_TOKEN", "API_TOKEN"])
@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("hunter2", f"has 7 characters, at least 16 are needed; {ADVICE}"),
        (
            "your-secure-random-token-here-change-this",
            f"is the placeholder of the documentation; {ADVICE}",
        ),
        ("schlüssel-mit-umlaut", "has characters an HTTP header cannot hold; use letters and digits"),
    ],
)
def test_a_weak_token_is_refused_without_showing_it(name: str, value: str, line: str) -> None:
    assert why(**{name: value}) == [f"{name} {line}"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_strangers_need_a_token(host: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("API_TOKEN", TOKEN)
    environment.setenv("HOST", host)
    Settings.load().refuse_strangers()
    environment.delenv("API_TOKEN")
    with pytest.raises(SettingsError) as refused:
        Settings.load().refuse_strangers()
    assert str(refused.value) == (
        f"HOST {host} is open to other machines, so API_TOKEN must be set; {ADVICE}, or listen on 127.0.0.1"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_open(host: str) -> None:
    assert is_loopback(host)


def test_no_secret_in_the_text_of_the_settings(environment: pytest.MonkeyPatch) -> None:
    for name in ("ADMIN_TOKEN", "API_TOKEN", "OPENAI_API_KEY"):
        environment.setenv(name, TOKEN)
    environment.setenv("DATABASE_URL", f"postgresql://u:{TOKEN}@db/x")
    environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"key={TOKEN}")
    settings = Settings.load()
    assert TOKEN not in f"{settings!r} {settings}"


def documented() -> dict[str, tuple[str, str]]:
    """Default and description of each setting in docs/settings.md."""
    page = (ROOT / "docs/settings.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| .*? ?\| (.*) \|$", page, re.MULTILINE)
    return {name: (default, description) for name, default, description in rows}


def test_the_page_documents_every_setting_with_its_default() -> None:
    expected = {}
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default in (None, (), {}) else f"`{field.default}`"
        default = "see below" if name == "spanledger_data_dir" else default
        expected[name.upper()] = (default, field.description)
    assert documented() == expected


def test_the_example_names_only_settings_and_loads() -> None:
    example = (ROOT / ".env.example").read_text()
    service, compose, _ = example.partition("\n# For docker-compose.yml")
    names = re.findall(r"^#([A-Z_]+)=", service, re.MULTILINE)
    assert names
    assert compose
    assert {name.lower() for name in names} <= set(Settings.model_fields)
    Path(".env").write_text(re.sub(r"^#(?=[A-Z_]+=)", "", example, flags=re.MULTILINE))
    assert Settings.load().openai_model == "gpt-4o-mini"
