"""`spanledger demo`: real traffic through the HTTP API, then the proof that metrics and rows agree with it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter

import click

from app.demo.alert import DEFAULT_PROMETHEUS, WAIT_SECONDS, AlertWatch, runbook
from app.demo.plan import NEEDS_CONTENT, OUTCOMES, asks
from app.demo.service import ServiceClient
from app.settings import Settings

__all__ = ["NEEDS_CONTENT", "demo"]

RATE = 6.0
"""Requests a second."""
STORED_SECONDS = 30.0
"""How long rows may take to be stored after the last request."""


async def demo(settings: Settings, *, seconds: float, broken: str | None, url: str | None) -> bool:
    """Make traffic, print what came of it; False where something is not as it must be.

    Raises:
        StartError: The service is not there, or refuses us.
    """
    service = ServiceClient(settings, url)
    async with service.http:
        await service.reachable()
        run_id = secrets.token_hex(4)
        before = await service.counted()
        watch = AlertWatch(settings.prometheus_url or DEFAULT_PROMETHEUS, broken) if broken else None
        try:
            asked = await _traffic(service, run_id, seconds, broken, watch)
        except ExceptionGroup as group:  # of the tasks; the first says why
            raise group.exceptions[0] from None
        stored = await _stored(service, run_id, asked.total())
        moved = await service.counted() - before
    agreed = _print_agreement(asked, moved, stored)
    click.echo(f"\nSee the rows:  curl -H 'Authorization: Bearer …' '{service.url}/api/admin/errors?limit=10'")
    return _print_alert(watch) and agreed if watch else agreed


async def _traffic(
    service: ServiceClient, run_id: str, seconds: float, broken: str | None, watch: AlertWatch | None
) -> Counter[str]:
    """Ask at a steady rate; goes on while the alert is awaited."""
    asked: Counter[str] = Counter()
    began = time.monotonic()
    alert = asyncio.create_task(watch.until_firing()) if watch else None
    with click.progressbar(length=int(seconds), label="traffic") as bar:
        async with asyncio.TaskGroup() as group:
            for number, ask in enumerate(asks(run_id, broken)):
                elapsed = time.monotonic() - began
                bar.update(min(int(elapsed), int(seconds)) - bar.pos)
                if elapsed >= seconds and (alert is None or alert.done()):
                    break
                group.create_task(service.ask(ask))
                asked[ask.status] += 1
                await asyncio.sleep(max(0.0, began + (number + 1) / RATE - time.monotonic()))
    return asked


async def _stored(service: ServiceClient, run_id: str, expected: int) -> Counter[str]:
    deadline = time.monotonic() + STORED_SECONDS
    while (stored := await service.stored(run_id)).total() < expected and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    return stored


def _print_agreement(asked: Counter[str], moved: Counter[str], stored: Counter[str]) -> bool:
    click.echo(f"\n{'requests':<12}{'asked for':>12}{'/metrics':>12}{'Postgres':>12}")
    for status in (*OUTCOMES, *sorted((moved + stored).keys() - OUTCOMES.keys())):
        click.echo(f"{status:<12}{asked[status]:>12}{moved[status]:>12}{stored[status]:>12}")
    if not _fits(asked, stored):
        click.echo("The rows are not what was asked for: `spanledger doctor` says what is wrong.")
        return False
    click.echo("The three agree." if moved == stored else "/metrics moved otherwise: somebody else uses this service.")
    return True


def _fits(asked: Counter[str], stored: Counter[str]) -> bool:
    """Whether each request has its row. A caller who leaves may be too late: then the run was a success."""
    too_late = stored["success"] - asked["success"]
    return 0 <= too_late <= asked["cancelled"] and stored == asked + Counter(success=too_late) - Counter(
        cancelled=too_late
    )


def _print_alert(watch: AlertWatch) -> bool:
    if not watch.reachable:
        click.echo("\nNo Prometheus answers, so no alert can fire: start the stack (docs/production.md), or one of")
        click.echo(
            "your own with prometheus/prometheus.yml, and set PROMETHEUS_URL. This is what its page would say:\n"
        )
    elif watch.firing is None:
        click.echo(f"\nThe alert did not fire within {WAIT_SECONDS:.0f} s: does this Prometheus scrape the service and")
        click.echo("have prometheus/rules? `spanledger doctor` says.\n")
    else:
        click.echo(f"\nThe alert was pending after {watch.pending:.0f} s and fired after {watch.firing:.0f} s:")
        click.echo(f"  {watch.annotations['summary']}: {watch.annotations['description']}")
        click.echo(f"Its runbook, {watch.annotations['runbook_url']}:\n")
    click.echo(runbook())
    return not watch.reachable or watch.firing is not None
