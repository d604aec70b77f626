"""The Spanledger service: HTTP, database and agents around the `telemetry` library."""
