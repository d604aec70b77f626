"""The service that is looked at: its answers, its metrics and its database, each asked for once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import httpx
import psycopg
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import URL

from app import postmaster
from app.database import connect_arguments, database_url
from app.embedded import DATABASE, PORT
from app.settings import Settings

SERVICE_SECONDS = 4.0
"""Patience with the service: `/readyz` itself gives Postgres two."""
DATABASE_SECONDS = 2  # to connect, and for a statement
WANTED = re.compile(r"^(?:spanledger_|process_start_time_seconds ).*$", re.MULTILINE)
"""The lines of /metrics we read: the parser would take seconds for thousands of histogram buckets."""


class Away(Exception):
    """What a check needs cannot be reached; the message says why, in words without secrets."""


class Metrics:
    """Samples of a scrape."""

    def __init__(self, text: str) -> None:
        lines = "\n".join(WANTED.findall(text)) + "\n"
        self._samples = [sample for family in text_string_to_metric_families(lines) for sample in family.samples]

    def by(self, name: str, label: str) -> dict[str, float]:
        """Value by `label`, without zeros."""
        return {sample.labels[label]: sample.value for sample in self._samples if sample.name == name and sample.value}

    def total(self, name: str) -> float:
        """Sum of all its series."""
        return sum(sample.value for sample in self._samples if sample.name == name)

    def labels(self, name: str) -> dict[str, str] | None:
        """The labels of its first series."""
        return next((dict(sample.labels) for sample in self._samples if sample.name == name), None)


class Patient:
    """One look at one service; nothing here changes anything. What is away once is not waited for again."""

    def __init__(self, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.now = now
        self.data_dir, self.spool_dir = settings.spanledger_data_dir, settings.spool_dir
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
        # Neither proxies nor .netrc of the environment: the service is here.
        self._client = httpx.Client(timeout=SERVICE_SECONDS, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        if "_connection" in self.__dict__ and isinstance(self._connection, psycopg.Connection):
            self._connection.close()

    def get(self, url: str, **options: Any) -> httpx.Response:
        """Ask.

        Raises:
            Away: No answer.
        """
        try:
            return self._client.get(url, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Away(str(error) or type(error).__name__) from None

    @property
    def alive(self) -> httpx.Response:
        """The answer of /healthz.

        Raises:
            Away: The service does not answer.
        """
        if isinstance(self._alive, Away):
            raise self._alive
        return self._alive

    @cached_property
    def _alive(self) -> httpx.Response | Away:
        try:
            return self.get(f"{self.url}/healthz", timeout=2.0)
        except Away as away:
            return Away(f"no answer at {self.url}/healthz: {away}")

    @property
    def metrics(self) -> Metrics:
        """What the service counts.

        Raises:
            Away: There are none.
        """
        if self._metrics is None:
            raise Away(f"no metrics at {self.url}/metrics")
        return self._metrics

    def metrics_again(self) -> Metrics:
        """What it counts now.

        Raises:
            Away: There are none.
        """
        self.__dict__.pop("_metrics", None)
        return self.metrics

    @cached_property
    def _metrics(self) -> Metrics | None:
        with suppress(Away, ValueError):
            self.alive  # noqa: B018 - raises when the service is away
            answer = self.get(f"{self.url}/metrics")
            return Metrics(answer.text) if answer.status_code == 200 else None
        return None

    @property
    def database(self) -> psycopg.Connection[Any]:
        """A connection of the service's login, every statement a transaction.

        Raises:
            Away: It cannot be reached.
        """
        if isinstance(self._connection, Away):
            raise self._connection
        return self._connection

    @cached_property
    def _connection(self) -> psycopg.Connection[Any] | Away:
        try:
            arguments = self._database_arguments()
            connection = psycopg.connect(**arguments, autocommit=True)
            connection.execute(f"SET statement_timeout = '{DATABASE_SECONDS}s'; SET lock_timeout = '1s'")
            connection.execute("SET TIME ZONE 'UTC'; SET default_transaction_read_only = on")
            return connection
        except Away as away:
            return away
        except ValueError:  # its text may hold the URL
            return Away("not a URL of Postgres")
        except PermissionError as error:
            return Away(f"{error.filename} is closed to this user: run doctor as the user of the service")
        except psycopg.Error as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no answer")
            return Away(reason)

    @cached_property
    def database_place(self) -> str:
        """Which database, without its password."""
        if self.settings.database_url is None:
            return f"the embedded server in {self.data_dir / 'postgres'}"
        try:
            return self._database_url.render_as_string(hide_password=True)
        except ValueError:
            return "DATABASE_URL"

    @cached_property
    def _database_url(self) -> URL:
        assert self.settings.database_url is not None
        return database_url(self.settings.database_url.get_secret_value())

    def _database_arguments(self) -> dict[str, Any]:
        if self.settings.database_url is None:
            running = postmaster.running(self.data_dir / "postgres" / "data")
            if running is None:
                raise Away(f"no embedded server runs in {self.data_dir / 'postgres'}")
            return {
                "user": "postgres",
                "dbname": DATABASE,
                "host": running.socket_dir,
                "port": PORT,
                "connect_timeout": DATABASE_SECONDS,
            }
        url = self._database_url
        given = url.translate_connect_args(username="user", database="dbname") | dict(url.query)
        ours = {"application_name": "spanledger doctor", "connect_timeout": DATABASE_SECONDS}
        return {**connect_arguments(url), **given, **ours}

    @contextmanager
    def reading_rows(self) -> Iterator[psycopg.Connection[Any]]:
        """The connection with the rights of the admin API, where the login may take them.

        Raises:
            Away: It cannot be reached.
        """
        with suppress(psycopg.Error):
            self.database.execute("SET ROLE spanledger_admin")
        try:
            yield self.database
        finally:
            with suppress(psycopg.Error):
                self.database.execute("RESET ROLE")

    def secrets(self) -> list[str]:
        """What must never be printed."""
        settings = self.settings
        found = [*settings.admin_tokens(), *settings.otlp_headers().values()]
        found += [one.get_secret_value() for one in (settings.api_token, settings.openai_api_key) if one is not None]
        with suppress(ValueError):
            if settings.database_url is not None and self._database_url.password:
                found.append(str(self._database_url.password))
        with suppress(OSError, UnicodeDecodeError):
            found.append((self.data_dir / "admin-token").read_text("ascii").strip())
        return [secret for secret in found if len(secret) > 3]
