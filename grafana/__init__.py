"""The dashboard of Grafana, written in Python and committed as JSON."""

import warnings

with warnings.catch_warnings():
    # The SDK calls the classic dashboard deprecated; Grafana's file provisioning still reads it.
    warnings.simplefilter("ignore", DeprecationWarning)
    import grafana_foundation_sdk.builders.dashboard
    import grafana_foundation_sdk.builders.prometheus  # noqa: F401
