"""The service's settings: the environment and `.env` are read here, once, and nowhere else."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

import platformdirs
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

TOKEN_MIN = 16
"""Shortest token, in characters: 16 letters and digits are 95 bits."""

PLACEHOLDERS = frozenset({"your-secure-random-token-here-change-this", "your-admin-token-here"})
NEW_TOKEN = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe())'"
PIECES = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}"}

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
Sampler = Literal[
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
]
Capture = Literal["no_content", "span_only", "event_only", "span_and_event", "true", "false"]


class StartError(Exception):
    """Why the service cannot start, and what to do about it, in one line."""


class SettingsError(StartError):
    """Settings the service cannot start with: one line per wrong value, never a secret."""


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _split(separator: str) -> BeforeValidator:
    def split(value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(separator) if part.strip())
        return value

    return BeforeValidator(split)


def _strong(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if text in PLACEHOLDERS:
        raise ValueError(f"is the placeholder of the documentation; {NEW_TOKEN}")
    if len(text) < TOKEN_MIN:
        raise ValueError(f"has {len(text)} characters, at least {TOKEN_MIN} are needed; {NEW_TOKEN}")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("has characters an HTTP header cannot hold; use letters and digits")
    return token


def _postgres(url: SecretStr) -> SecretStr:
    schemes = ("postgresql", "postgres", "postgresql+psycopg")
    if urlsplit(url.get_secret_value()).scheme not in schemes:
        raise ValueError("is not a Postgres URL; allowed: postgresql://user:password@host:5432/database")
    return url


def _http(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is not a URL; allowed: http://host:port/path or https://host/path")
    return url


def parse_pairs(text: str) -> dict[str, str]:
    """`key=value,key=value` with percent-encoding, as the OpenTelemetry specification writes maps.

    Raises:
        ValueError: A pair lacks its key or its `=`.
    """
    items = [item.partition("=") for item in text.split(",") if item.strip()]
    if any(not key.strip() or not equals for key, equals, _ in items):
        raise ValueError("is not a list of pairs; allowed: key=value,key=value")
    return {key.strip(): unquote(value.strip()) for key, _, value in items}


def _pairs(value: object) -> object:
    return parse_pairs(value) if isinstance(value, str) else value


def _secret_pairs(text: SecretStr) -> SecretStr:
    parse_pairs(text.get_secret_value())
    return text


def _patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for number, pattern in enumerate(patterns, 1):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"has no valid regular expression as number {number}: {error}") from None
    return patterns


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def default_data_dir() -> Path:
    """`/var/lib/spanledger` as root, else the user's data directory."""
    return Path("/var/lib/spanledger" if os.geteuid() == 0 else platformdirs.user_data_dir("spanledger"))


Token = Annotated[SecretStr, AfterValidator(_strong)]
Url = Annotated[str, AfterValidator(_http)]
Pairs = Annotated[dict[str, str], NoDecode, BeforeValidator(_pairs)]


class Settings(BaseSettings):
    """Each field is the environment variable of the same name in lower case."""

    model_config = SettingsConfigDict(
        env_file_encoding="utf-8-sig",  # Notepad and PowerShell write a byte order mark
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    host: str = Field(default="127.0.0.1", description="Address to listen on. Other than loopback needs API_TOKEN.")
    port: int = Field(default=8000, ge=1, le=65535, description="TCP port to listen on.")
    admin_token: Annotated[tuple[Token, ...], NoDecode, _split(",")] = Field(
        default=(),
        description="Tokens for /api/admin, separated by commas (several while one is replaced), each of at "
        "least 16 characters. Unset: one is made at first start and kept in the data directory.",
    )
    api_token: Token | None = Field(
        default=None, description="Bearer token for /api/ai, at least 16 characters. Unset: open, on loopback only."
    )
    database_url: Annotated[SecretStr, AfterValidator(_postgres)] | None = Field(
        default=None, description="URL of a Postgres 15 or newer. Unset: an embedded server in the data directory."
    )
    spanledger_data_dir: Annotated[Path, AfterValidator(_absolute)] = Field(
        default_factory=default_data_dir,
        description="Holds the embedded database, the spool and the admin token; one service at a time.",
    )
    openai_api_key: SecretStr | None = Field(
        default=None, description="Key of an OpenAI-compatible server. Unset: the built-in local engine answers."
    )
    openai_base_url: Url | None = Field(default=None, description="URL of an OpenAI-compatible server. Unset: OpenAI.")
    openai_model: str = Field(default="gpt-4o-mini", description="Model the agents ask for.")
    otel_service_name: str = Field(default="spanledger", description="`service.name` of spans, metrics and rows.")
    otel_resource_attributes: Pairs = Field(
        default={},
        description="Further resource attributes, `key=value,key=value`; "
        "`deployment.environment.name` becomes a column and a label, "
        "`service.namespace` and `service.version` columns.",
    )
    otel_exporter_otlp_endpoint: Url | None = Field(
        default=None, description="Trace backend, OTLP over HTTP, without `/v1/traces`. Unset: no export."
    )
    otel_exporter_otlp_headers: Annotated[SecretStr, AfterValidator(_secret_pairs)] | None = Field(
        default=None, description="Headers for the trace backend, `key=value,key=value`, such as its key."
    )
    otel_traces_sampler: Annotated[Sampler, BeforeValidator(_lower)] = Field(
        default="parentbased_always_on",
        description="Which traces go to the trace backend. What is counted and stored is never sampled.",
    )
    otel_traces_sampler_arg: float = Field(
        default=1.0, ge=0, le=1, description="Share of traces for the samplers named `traceidratio`."
    )
    otel_instrumentation_genai_capture_message_content: Annotated[Capture, BeforeValidator(_lower)] = Field(
        default="no_content",
        description="`span_only`, `span_and_event` or `true` put inputs and outputs on exported spans.",
    )
    prometheus_url: Url | None = Field(
        default=None,
        description="Prometheus that scrapes this service, for `doctor` and `demo`. "
        "Unset: the one at http://127.0.0.1:9090, if there is one.",
    )
    spool_max_bytes: int = Field(
        default=1 << 30,
        ge=1 << 20,
        description="Most bytes waiting for Postgres on disk; the newest beyond are dropped.",
    )
    spool_sync: bool = Field(
        default=True,
        description="Commit rows to disk about once a second. `false`: the kernel does, within half a minute; "
        "only loss of power tells the difference.",
    )
    payload_max_bytes: int = Field(
        default=8192, ge=0, le=1 << 20, description="Longest input and longest output kept of one run, in bytes each."
    )
    redact_patterns: Annotated[tuple[str, ...], NoDecode, _split(";"), AfterValidator(_patterns)] = Field(
        default=(), description="Regular expressions, separated by semicolons, whose matches are redacted as well."
    )
    retention_days: int = Field(
        default=35, ge=1, le=400, description="Days a row counts; older ones are neither shown nor taken in."
    )
    agent_timeout_seconds: float = Field(
        default=120.0, gt=0, le=3600, description="Longest run of one agent, in seconds; then it is a `timeout`."
    )
    stuck_after_seconds: float = Field(
        default=900.0, gt=0, description="Runs that are open for longer are shown as stuck."
    )
    max_body_bytes: int = Field(
        default=1 << 20, ge=1024, le=64 << 20, description="Largest request body, in bytes; 413 beyond."
    )
    log_level: Annotated[LogLevel, BeforeValidator(_lower)] = Field(
        default="info", description="Least severe log lines written to stderr."
    )

    @property
    def spool_dir(self) -> Path:
        """Where every process of this data directory has its spool."""
        return self.spanledger_data_dir / "spool"

    def refuse_strangers(self) -> None:
        """Agents behind an open door need a token.

        Raises:
            SettingsError: HOST is open to other machines, and API_TOKEN is unset.
        """
        if not is_loopback(self.host) and self.api_token is None:
            raise SettingsError(
                f"HOST {self.host} is open to other machines, so API_TOKEN must be set; {NEW_TOKEN}, "
                "or listen on 127.0.0.1"
            )

    def admin_tokens(self) -> tuple[str, ...]:
        """The accepted values of ADMIN_TOKEN."""
        return tuple(token.get_secret_value() for token in self.admin_token)

    def otlp_headers(self) -> dict[str, str]:
        """The headers for the trace backend."""
        secret = self.otel_exporter_otlp_headers
        return parse_pairs(secret.get_secret_value()) if secret else {}

    def capture_content(self) -> bool:
        """Whether inputs and outputs go on exported spans."""
        return self.otel_instrumentation_genai_capture_message_content in (
            "span_only",
            "span_and_event",
            "true",
        )

    @classmethod
    def load(cls, env_file: str | Path | None = ".env") -> Self:
        """The settings of the environment, then of `env_file`.

        Raises:
            SettingsError: A value is wrong; its text has one line per wrong value.
        """
        try:
            return cls(_env_file=env_file)
        except ValidationError as error:
            lines = [_line(cls, item) for item in error.errors(include_url=False)]
            raise SettingsError("\n".join(lines)) from None
        except UnicodeDecodeError:
            raise SettingsError(f"{env_file} is not UTF-8; save it again with that encoding") from None
        except OSError as error:
            raise SettingsError(f"{env_file} cannot be read: {error.strerror}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server listening on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _line(settings: type[Settings], error: Any) -> str:
    """One wrong value as `NAME what is wrong and allowed`; the value may be a secret and is not shown."""
    name = str(error["loc"][0])
    if error["type"] == "value_error":
        return f"{name.upper()} {error['ctx']['error']}"
    if error["type"] == "literal_error":
        return f"{name.upper()} has an unknown value; allowed: {error['ctx']['expected']}"
    bounds = [
        text.format(getattr(bound, kind))
        for bound in settings.model_fields[name].metadata
        for kind, text in PIECES.items()
        if hasattr(bound, kind)
    ]
    kind = settings.model_fields[name].annotation
    wanted = {int: "a whole number", float: "a number"}.get(kind) if isinstance(kind, type) else None
    return f"{name.upper()} must be {', '.join([wanted or error['msg'], *bounds])}"
