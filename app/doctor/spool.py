"""Do rows get out of the spool, is there room, and was anything lost?"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from app.doctor.finding import Check, Finding, fail, ok, skip, warn
from app.doctor.patient import Away, Patient

LAG_SECONDS = 60.0
FULL = 0.9  # of SPOOL_MAX_BYTES
DISK_MIN = 64 << 20  # bytes; below, Postgres and the spool are about to fail
NO_METRICS = skip("no metrics of the service")


def spool(patient: Patient) -> Finding:
    """Writable, and what waits in it."""
    path = patient.spool_dir
    if not path.is_dir():
        return fail(f"{path} does not exist", "Is SPANLEDGER_DATA_DIR the service's, and was it started here?")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return fail(f"{path} is not writable", "Give it back to the user of the service (chown, chmod 700).")
    try:
        metrics = patient.metrics
    except Away:
        return _left_behind(patient, path)
    waiting, capacity = metrics.total("spanledger_spool_bytes"), metrics.total("spanledger_spool_capacity_bytes")
    age = metrics.total("spanledger_spool_oldest_age_seconds")
    seen = f"{_size(waiting)} of {_size(capacity)} wait, the oldest {age:.0f} s"
    if waiting > FULL * capacity:
        return fail(seen, "The newest rows are dropped when it is full: bring Postgres back, or raise SPOOL_MAX_BYTES.")
    if age > LAG_SECONDS:
        return warn(seen, "Postgres does not take rows: see the line `database` and the service's log.")
    return ok(seen)


def _left_behind(patient: Patient, path: Path) -> Finding:
    sizes, times = [], []
    for file in path.glob("*/*.v1.*"):
        with suppress(OSError):
            found = file.stat()
            sizes.append(found.st_size)
            times.append(found.st_mtime)
    if not sum(sizes):
        return ok(f"{path} is empty; no metrics of the service")
    seen = f"{_size(sum(sizes))} wait, the oldest {max(0, patient.now() - min(times)):.0f} s; no metrics of the service"
    return warn(seen, "Start the service, or run spanledger drain: either stores them.")


def disk(patient: Patient) -> Finding:
    """Free space where the spool is."""
    path = next(path for path in (patient.spool_dir, *patient.spool_dir.parents) if path.exists())
    free, wanted = shutil.disk_usage(path).free, patient.settings.spool_max_bytes
    seen = f"{_size(free)} free at {path}"
    if free < DISK_MIN:
        return fail(seen, "Make room: neither the spool nor an embedded database can be written without.")
    if free < wanted:
        return warn(f"{seen}, less than SPOOL_MAX_BYTES ({_size(wanted)})", "Make room, or lower SPOOL_MAX_BYTES.")
    return ok(seen)


def rejected_rows(patient: Patient) -> Finding:
    """Lines of rejected.ndjson: rows that Postgres will not take."""
    number = 0
    path = patient.spool_dir / "rejected.ndjson"
    for file in (path, path.with_suffix(".1.ndjson")):
        try:
            with file.open("rb") as lines:
                number += sum(1 for _ in lines)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return skip(f"{file} cannot be read ({error.strerror})", "Run doctor as the user of the service.")
    if number:
        return warn(
            f"{number} in {path}",
            "Each line says why. Correct that, then run spanledger replay-rejected, or move the file away.",
        )
    return ok("none")


def dropped_rows(patient: Patient) -> Finding:
    """Rows lost since the service started."""
    try:
        lost = patient.metrics.by("spanledger_rows_dropped_total", "reason")
    except Away:
        return NO_METRICS
    if lost:
        return warn(_counts(lost), "spool_full: bring Postgres back. disk_error: see `disk`. error: see the log.")
    return ok("none since the service started")


def ledger(patient: Patient) -> Finding:
    """Does what came in add up to where it is? Asked again where it does not: a batch may be under way."""
    for attempt in range(3):
        try:
            parts = patient.metrics_again().by("spanledger_ledger_unexplained", "part")
        except Away:
            return NO_METRICS
        if not parts:
            return ok("every execution and every row is accounted for")
        if attempt < 2:
            time.sleep(1)
    return warn(
        f"unexplained: {_counts(parts)}",
        "GET /api/admin/ledger has the accounts, docs/api.md what they mean. With traffic, look again without.",
    )


def errors(patient: Patient) -> Finding:
    """Errors of the library itself since the service started."""
    try:
        found = patient.metrics.by("spanledger_errors_total", "where")
    except Away:
        return NO_METRICS
    if found:
        return warn(_counts(found), "The service's log has them; sink and spool also stand for an outage that is over.")
    return ok("none since the service started")


def _counts(counts: dict[str, float]) -> str:
    return ", ".join(f"{name} {count:.0f}" for name, count in counts.items())


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


CHECKS = (
    Check("spool", spool),
    Check("disk", disk),
    Check("rejected_rows", rejected_rows),
    Check("dropped_rows", dropped_rows),
    Check("ledger", ledger),
    Check("errors", errors),
)
