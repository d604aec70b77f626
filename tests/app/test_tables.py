from __future__ import annotations

import pytest
from sqlalchemy import Table, text

from app.database import Database
from app.tables import agent_executions, execution_steps


@pytest.mark.parametrize("table", [agent_executions, execution_steps], ids=lambda table: table.name)
def test_a_table_is_the_migrations_table(database: Database, table: Table) -> None:
    """COPY names no columns, so their order counts as well."""
    query = text(
        "SELECT attname, upper(format_type(atttypid, NULL)), NOT attnotnull FROM pg_attribute"
        " WHERE attrelid = to_regclass(:name) AND attnum > 0 ORDER BY attnum"
    )
    with database.connect("spanledger_admin") as connection:
        dialect = connection.dialect
        found = [tuple(row) for row in connection.execute(query, {"name": table.name})]

    assert found == [(c.name, c.type.compile(dialect), c.nullable) for c in table.columns]
