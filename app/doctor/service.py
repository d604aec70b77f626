"""Does the service answer, is it ready, and are its spans all counted?"""

from __future__ import annotations

from app.doctor.finding import Check, Finding, fail, ok, skip, warn
from app.doctor.patient import Away, Patient

WAIT = "Rows wait in the spool meanwhile. See the lines `database` and `migrations`, and the service's log."
SAMPLER_MAX = 50
"""Characters of a sampler's description that are shown."""


def service(patient: Patient) -> Finding:
    """GET /healthz."""
    try:
        answer = patient.alive
    except Away as away:
        return fail(
            str(away), "Start it (make run), or run doctor with the same HOST and PORT (or .env) as the service."
        )
    try:
        alive = answer.status_code == 200 and answer.json() == {"status": "ok"}
    except ValueError:
        alive = False
    if not alive:
        advice = "Something else listens there: stop it, or set PORT to another for both."
        return fail(f"{patient.url}/healthz answers {answer.status_code}, and not as Spanledger does", advice)
    return ok(f"answers at {patient.url}")


def ready(patient: Patient) -> Finding:
    """GET /readyz."""
    try:
        patient.alive  # noqa: B018 - raises when the service is away
        answer = patient.get(f"{patient.url}/readyz")
        body = answer.json()
        status, checks = body["status"], ", ".join(f"{name} {state}" for name, state in body["checks"].items())
    except Away:
        return skip("the service does not answer")
    except (ValueError, KeyError, TypeError, AttributeError):
        return fail(f"{patient.url}/readyz answers {answer.status_code}, and not as Spanledger does", "See `service`.")
    if status == "ok":
        return ok(checks)
    if status == "degraded":
        return warn(f"degraded: {checks}", WAIT)
    return fail(f"{status}: {checks}", "No ended run can be kept. See the line `spool`.")


def tracing(patient: Patient) -> Finding:
    """The tracer provider the library is attached to."""
    try:
        labels = patient.metrics.labels("spanledger_tracer_provider_info")
    except Away:
        return skip("no metrics of the service")
    if labels is None:
        return skip("it has several workers, each with a provider of its own")
    sampler = labels["sampler"]
    short = sampler if len(sampler) <= SAMPLER_MAX else sampler[:SAMPLER_MAX] + "…"
    seen = f"{labels['provider']} tracer provider, sampler {short}"
    if labels["records"] != "all":
        return fail(
            f"{seen}: spans it drops are neither counted nor stored",
            "Wrap the sampler of your TracerProvider in telemetry.AlwaysRecord(...) and restart.",
        )
    if labels["provider"] != "global":
        return warn(
            f"{seen}: libraries that use the global one are not seen",
            "Set the global TracerProvider before configure(), or give configure() that one.",
        )
    return ok(seen)


CHECKS = (Check("service", service), Check("ready", ready), Check("tracing", tracing))
