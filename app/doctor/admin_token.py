"""Is there an admin token, and does the service take it?"""

from __future__ import annotations

import stat

from app.doctor.finding import Check, Finding, fail, ok, skip, warn
from app.doctor.patient import Away, Patient

WRONG = "Verify ADMIN_TOKEN in .env (or the file) and restart the service after changing it: it is read at start only."


def admin_token(patient: Patient) -> Finding:
    """Each token, tried at GET /api/admin/metrics."""
    tokens: tuple[str, ...] = patient.settings.admin_tokens()
    path = patient.data_dir / "admin-token"
    place = "ADMIN_TOKEN" if tokens else str(path)
    others_read = False
    if not tokens:
        try:
            tokens = (path.read_text("ascii").strip(),)
            others_read = bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
        except FileNotFoundError:
            return fail(f"ADMIN_TOKEN is unset and {path} does not exist", "Is SPANLEDGER_DATA_DIR the service's?")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not ASCII"
            return fail(f"{path} cannot be read ({why})", "Run doctor as the user of the service.")
    try:
        patient.alive  # noqa: B018 - raises when the service is away
        codes = [_try(patient, token) for token in tokens]
    except Away:
        return skip(f"from {place}; no service to try it on")
    refused = [code for code in codes if code in (401, 403)]
    if refused:
        which = f"{len(refused)} of {len(codes)} tokens" if len(codes) > 1 else "the token"
        return fail(f"the service refuses {which} of {place} with {refused[0]}", WRONG)
    if any(code not in (200, 503) for code in codes):  # 503: the database is away
        return warn(f"the one of {place} got the answer {codes[0]}", "See the service's log.")
    if others_read:
        return warn(f"accepted; others may read {path}", f"chmod 600 {path}")
    return ok(f"the one of {place} is accepted" + (", though the database is away" if 503 in codes else ""))


def _try(patient: Patient, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return patient.get(f"{patient.url}/api/admin/metrics", params={"hours": 1}, headers=headers).status_code


CHECKS = (Check("admin_token", admin_token),)
