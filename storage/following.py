"""SQLite deletes our rows together with Optuna's, whichever program deletes those.

SQLite enforces foreign keys only for a program that asks for it, and Optuna's commands do not. It
also gives the id of a deleted row to a new one, which would find our rows of the old one. A trigger
works for every program. Other databases enforce the keys.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from storage.models import Base

_PARENTS = {"trial_id": "trials", "study_id": "studies"}


def follow_deletions(engine: Engine) -> None:
    """Have SQLite do so from now on, and delete what earlier deletions have left of ours."""
    if engine.dialect.name != "sqlite":
        return
    wanted = {f"{table.name}_follows": table for table in Base.metadata.sorted_tables}
    with engine.begin() as connection:
        names = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        if wanted.keys() <= {*connection.scalars(sa.text(names))}:
            return
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        for trigger, table in reversed(wanted.items()):
            key = next(key for key in _PARENTS if key in table.columns)
            parent = _PARENTS[key]
            ids = sa.select(sa.column(key, sa.Integer)).select_from(sa.table(parent))
            connection.execute(sa.delete(table).where(table.c[key].not_in(ids)))
            when = f"{trigger} AFTER DELETE ON {parent}"
            then = f"DELETE FROM {table} WHERE {key} = OLD.{key};"  # noqa: S608 - our own names
            connection.exec_driver_sql(f"CREATE TRIGGER IF NOT EXISTS {when} BEGIN {then} END")
