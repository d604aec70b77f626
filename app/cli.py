"""The command line: `spanledger run` and the commands around it."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from pydantic import SecretStr

from app.settings import Settings, StartError

if TYPE_CHECKING:
    from fastapi import FastAPI

GRACE_SECONDS = 5
"""How long open requests may go on after Ctrl-C, in seconds; streams are then cut off."""

SEED_BODY = (
    '{"type": "flashcard_generation", "user_id": "18717267-0855-433c-b160-04c3443daa80",'
    ' "message": "Create flashcards about Python",'
    ' "options": {"count": 3, "difficulty": "medium", "content": "Python is a programming language"}}'
)


def print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """The version of pyproject.toml: the service runs from its sources and is not installed."""
    if wanted:
        pyproject = Path(__file__).parents[1] / "pyproject.toml"
        click.echo(f"spanledger {tomllib.loads(pyproject.read_text())['project']['version']}")
        context.exit()


@click.group()
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="Show it.")
def spanledger() -> None:
    """Spanledger: observability for AI agents."""


@spanledger.command()
@click.option("--workers", type=click.IntRange(1, 16), default=1, show_default=True, help="Processes that serve.")
def run(workers: int) -> None:
    """Run the service; its settings come from the environment and from .env."""
    try:
        settings = Settings.load()
        settings.refuse_strangers()
        listener = listen(settings.host, settings.port)
    except StartError as error:
        fail(error)
    if workers == 1:
        from app.main import create_app

        serve(create_app(settings), listener, welcome(settings))
    else:
        supervise(settings, listener, workers)


def supervise(settings: Settings, listener: socket.socket, count: int) -> None:
    """Serve by several processes; this one stores what they spool, and has the metrics of all."""
    from app.drain import create_app
    from app.workers import Workers

    directory = tempfile.mkdtemp(prefix="spanledger-")  # a short path: a socket's is limited
    try:
        path = Path(directory) / "supervisor"
        with socket.socket(socket.AF_UNIX) as private:
            private.bind(str(path))
            app = create_app(settings, Workers(count, listener), path)
            serve(app, private, welcome(settings), access_log=False)  # the workers log who asks
    finally:  # where it does not end by a signal, which nothing here survives: then the lifespan does it
        shutil.rmtree(directory, ignore_errors=True)


@spanledger.command(hidden=True)
@click.argument("listener", type=int)
@click.argument("supervisor", type=click.Path(path_type=Path))
def worker(listener: int, supervisor: Path) -> None:
    """One of the processes of `run --workers`."""
    from app.main import create_app

    database_url = SecretStr(sys.stdin.readline().rstrip("\n"))
    threading.Thread(target=stop_with_stdin, daemon=True).start()
    try:
        settings = Settings.load().model_copy(update={"database_url": database_url})
        app = create_app(settings, supervisor)
    except StartError as error:
        fail(error)
    serve(app, socket.socket(fileno=listener), "serving")  # the supervisor waits for it


def stop_with_stdin() -> None:
    """The supervisor holds the other end: it ends with it."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


@spanledger.command()
def drain() -> None:
    """Store what agents of other processes spool in SPANLEDGER_DATA_DIR, with their metrics."""
    from app.drain import create_app

    try:
        settings = Settings.load()
        app, listener = create_app(settings), listen(settings.host, settings.port)
    except StartError as error:
        fail(error)
    serve(app, listener, f"Draining {settings.spool_dir}; metrics at {url_of(settings)}/metrics")


@spanledger.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Look at the running service and what is around it, and say what to do. Exit code 1: something fails."""
    from app import doctor

    findings = doctor.examine()
    width = shutil.get_terminal_size().columns
    click.echo(doctor.to_json(findings) if as_json else doctor.to_text(findings, width))
    sys.exit(1 if doctor.status(findings) == "FAIL" else 0)


@spanledger.command()
def migrate() -> None:
    """Bring the database of DATABASE_URL to the newest schema, then exit."""
    from app.migrate import migrate

    try:
        url = Settings.load().database_url
        if url is None:
            raise StartError("DATABASE_URL is unset: the embedded database is migrated by `spanledger run` itself")
        migrate(url.get_secret_value())
    except StartError as error:
        fail(error)


@spanledger.command()
@click.option("--repair", is_flag=True, help="Settle from the steps, rebuild the roll-up of hours that differ.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(repair: bool, as_json: bool) -> None:
    """Prove that rows, steps and the roll-up say the same. Exit code 1: they differ (after a repair: still)."""
    from app import check, queries, rollup
    from app.database import Database, DatabaseUnavailable

    try:
        settings = Settings.load()
        since = rollup.first_full_hour(queries.oldest(queries.utc_now(), settings.retention_days))
        database = Database(database_url_of(settings))
        try:
            report = check.check(database, since)
            if repair and report:
                click.echo(report.to_text(), err=True)
                report = check.repair(database, report, since)
        finally:
            database.dispose()
    except DatabaseUnavailable as error:
        fail(StartError(str(error)))
    except StartError as error:
        fail(error)
    click.echo(report.to_json() if as_json else report.to_text())
    sys.exit(1 if report else 0)


@spanledger.command()
@click.option("--reason", type=click.Choice(["timestamp", "data", "constraint"]), help="Only rows set aside for this.")
@click.option("--dry-run", is_flag=True, help="Only count.")
def replay_rejected(reason: str | None, dry_run: bool) -> None:
    """Put rows that were set aside back into the spool, once their cause is gone."""
    from telemetry import Rejected

    try:
        settings = Settings.load()
        if not settings.spool_dir.is_dir():
            raise StartError(f"{settings.spool_dir} does not exist; is SPANLEDGER_DATA_DIR the service's?")
        counts = Rejected(settings.spool_dir).put_back(reason=reason, dry_run=dry_run)
    except StartError as error:
        fail(error)
    except OSError as error:
        fail(StartError(f"{error.filename} cannot be used ({error.strerror})"))
    for what, number in sorted(counts.items()):
        click.echo(f"{'would be ' if dry_run else ''}{what}: {number}")
    if not counts:
        click.echo("Nothing is set aside.")


@spanledger.command()
@click.option("--seconds", type=click.FloatRange(1, 3600), default=60, show_default=True, help="How long.")
@click.option("--break", "broken", metavar="AGENT", help="Make this agent fail until its alert fires.")
@click.option("--url", help="Service to use instead of the one of HOST and PORT.")
def demo(seconds: float, broken: str | None, url: str | None) -> None:
    """Make varied traffic on the running service, and prove that metrics and rows agree with it."""
    import asyncio

    from app import demo

    if broken is not None and broken not in demo.NEEDS_CONTENT:
        raise click.BadParameter(f"one of {', '.join(demo.NEEDS_CONTENT)}", param_hint="--break")
    try:
        fine = asyncio.run(demo.demo(Settings.load(), seconds=seconds, broken=broken, url=url))
    except StartError as error:
        fail(error)
    sys.exit(0 if fine else 1)


def database_url_of(settings: Settings) -> str:
    """Where the rows are: `DATABASE_URL`, or the embedded server of a service that runs.

    Raises:
        StartError: No service runs.
    """
    from app.embedded import running_url

    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    url = running_url(settings.spanledger_data_dir)
    if url is None:
        raise StartError(
            f"DATABASE_URL is unset and no service runs on {settings.spanledger_data_dir}, which starts the database"
        )
    return url


def listen(host: str, port: int) -> socket.socket:
    """The listening socket, taken before anything else is started.

    Raises:
        StartError: The port is taken or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise StartError(
            f"cannot listen on {host} port {port} ({reason}); stop what does, or set HOST and PORT to others"
        ) from None


def serve(app: FastAPI, listener: socket.socket, ready: str | None = None, *, access_log: bool = True) -> None:
    """Serve until a signal, then drain and stop; `ready` is printed once it answers."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and ready is not None:
                with suppress(OSError):  # nobody reads it any more: no reason to leave open what has just been started
                    click.echo(ready)

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # ours says the same
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        timeout_graceful_shutdown=GRACE_SECONDS,
        access_log=access_log,
    )
    try:
        Server(config).run([listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again once everything has stopped
        sys.exit(130)
    except SystemExit:
        sys.exit(2)


def url_of(settings: Settings) -> str:
    """Where it listens."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def welcome(settings: Settings) -> str:
    """What to open and what to try, without the token itself."""
    url = url_of(settings)
    token_file = settings.spanledger_data_dir / "admin-token"
    kept = settings.admin_token == ()
    token = f"$(cat {shlex.quote(str(token_file))})" if kept else "$ADMIN_TOKEN"
    place = str(token_file) if kept else "ADMIN_TOKEN"
    bearer = ' -H "Authorization: Bearer $API_TOKEN"' if settings.api_token else ""
    return f"""\
Spanledger is at {url}
  API docs     {url}/docs
  metrics      {url}/metrics
  admin token  {place}

Run an agent:
  curl -N {url}/api/ai/process-stream{bearer} -H 'Content-Type: application/json' -d '{SEED_BODY}'
See what it did:
  curl -H "Authorization: Bearer {token}" '{url}/api/admin/metrics?hours=24'
"""


def fail(error: StartError) -> NoReturn:
    """One line on stderr per reason, and exit code 2."""
    for line in str(error).splitlines():
        click.echo(f"spanledger: {line}", err=True)
    sys.exit(2)
