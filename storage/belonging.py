"""Which rows of the database belong to a study, Optuna's and ours.

The database itself says it: the rows of every table whose foreign keys lead to the study's row. A
table that a later version adds is therefore found too.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection


def study_tables(connection: Connection) -> list[sa.Table]:
    """Return `studies` and all tables whose foreign keys lead to it, parents first."""
    metadata = sa.MetaData()
    metadata.reflect(connection)
    found: list[sa.Table] = []
    for table in metadata.sorted_tables:
        if table.name == "studies" or any(key.column.table in found for key in table.foreign_keys):
            found.append(table)
    return found


def belonging(table: sa.Table, study_id: int) -> sa.ColumnElement[bool]:
    """Return the condition that a row of one of these tables is the study's."""
    if table.name == "studies":
        return table.c.study_id == study_id
    return sa.or_(
        *(
            key.parent.in_(sa.select(key.column).where(belonging(key.column.table, study_id)))
            for key in table.foreign_keys
        )
    )
