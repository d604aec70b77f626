"""Runs the checks in order and prints what they found."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Callable

import click
import psycopg

from app.doctor import admin_token, clock, database, prometheus, service, spool
from app.doctor.finding import Check, Finding, Status, fail, ok, skip
from app.doctor.patient import Away, Patient
from app.settings import Settings, SettingsError

CHECKS: tuple[Check, ...] = (
    *service.CHECKS,
    *database.CHECKS,
    *admin_token.CHECKS,
    *spool.CHECKS,
    *prometheus.CHECKS,
    *clock.CHECKS,
)
COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "red", "skip": "cyan"}
NAME_WIDTH = max(len(check.name) for check in CHECKS)
INDENT = " " * (len("FAIL  ") + NAME_WIDTH + 2)

Findings = dict[str, Finding]


def examine(now: Callable[[], float] = time.time) -> Findings:
    """What every check found, by name, in the order of printing. Raises nothing."""
    try:
        settings = Settings.load()
    except SettingsError as error:
        wrong = fail("; ".join(str(error).splitlines()), "Correct the environment or .env (docs/settings.md).")
        return {"settings": wrong} | {check.name: skip("needs the settings") for check in CHECKS}
    patient = Patient(settings, now)
    try:
        found = {check.name: _look(check, patient) for check in CHECKS}
        return {"settings": ok(f"data directory {settings.spanledger_data_dir}")} | found
    finally:
        patient.close()


def _look(check: Check, patient: Patient) -> Finding:
    try:
        found = check.look(patient)
    except Away as away:  # it was there a moment ago
        found = skip(str(away))
    except psycopg.Error as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        found = fail(f"Postgres: {reason}", "See its log, and that the login is a member of the roles.")
    except PermissionError as error:
        found = fail(f"{error.filename} is closed to this user", "Run doctor as the user of the service.")
    except Exception as error:  # only its name: a message might hold anything
        return fail(f"the check itself failed: {type(error).__name__}", "Please report it, with this line.")
    detail = found.detail
    for secret in patient.secrets():
        detail = detail.replace(secret, "***")
    return Finding(found.status, detail, found.advice)


def status(findings: Findings) -> Status:
    """The worst of all."""
    seen = {finding.status for finding in findings.values()}
    return "FAIL" if "FAIL" in seen else "warn" if "warn" in seen else "ok"


def to_json(findings: Findings) -> str:
    """For programs."""
    checks = [
        {"name": name, "status": found.status, "detail": found.detail, "advice": found.advice}
        for name, found in findings.items()
    ]
    return json.dumps({"status": status(findings), "checks": checks}, indent=2)


def to_text(findings: Findings, width: int) -> str:
    """For people: a line per check, and below it what to do. click takes the colours out where it is no terminal."""
    lines = []
    for name, found in findings.items():
        state = click.style(f"{found.status:<4}", fg=COLOURS[found.status], bold=found.status == "FAIL" or None)
        lines.append(f"{state}  {name:<{NAME_WIDTH}}  {found.detail}")
        if found.advice:
            lines += textwrap.wrap(
                found.advice,
                max(width, 60),
                initial_indent=f"{INDENT}-> ",
                subsequent_indent=f"{INDENT}   ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines)
