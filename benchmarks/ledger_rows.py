"""Ledgers of many trials in seconds, for `ledger`: one real trial, cloned by SQL.

Whatever rows a trial has, its clones have: this knows which of their columns must differ, and
nothing else of the schema. It measures nothing.
"""

from __future__ import annotations

import os
import shutil

import sqlalchemy as sa

TABLES = (  # parents first
    "trials",
    "trial_params",
    "trial_values",
    "trial_user_attributes",
    "trial_system_attributes",
    "trial_intermediate_values",
    "hpo_attempts",
    "hpo_metrics",
)
LEVEL = 2000.5  # the first trial reports this, less its optimizer steps
ASIDE = 1000  # the others' values are up to that much larger


def grow(url: str, trials: int) -> None:
    """Clone the only trial of the only study at `url` until there are `trials`."""
    engine = sa.create_engine(
        url.replace("postgresql:", "postgresql+psycopg:"),
        enable_from_linting=False,  # each row of the first trial, times all others, is meant
    )
    postgres = engine.dialect.name == "postgresql"
    with engine.begin() as connection:
        if postgres:  # all that is referred to is there: it need not be looked up each time
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        schema = sa.MetaData()
        schema.reflect(connection)
        for name in TABLES:
            connection.execute(_cloning(schema, name, trials, postgres))
        connection.execute(sa.update(schema.tables["hpo_studies"]).values(reserved_trials=trials))
    if postgres:  # which does so by itself in the time that so many trials take
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    engine.dispose()


def copied(url: str) -> str:
    """The URL of a copy of the database at `url`, which nobody has open."""
    copy = f"{url.removesuffix('.db')}_{os.urandom(4).hex()}"
    if url.startswith("sqlite"):
        shutil.copy(url.removeprefix("sqlite:///"), f"{copy}.db".removeprefix("sqlite:///"))
        return f"{copy}.db"
    import psycopg

    server, _, name = url.rpartition("/")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {copy.rpartition('/')[2]} TEMPLATE {name}".encode())
    return copy


def _cloning(schema: sa.MetaData, name: str, trials: int, postgres: bool) -> sa.Insert:
    table, every = schema.tables[name], schema.tables["trials"]
    changed: dict[str, sa.ColumnElement[object]] = {}
    first = sa.select(sa.func.min(every.c.trial_id)).scalar_subquery()
    query = sa.select().where(table.c.trial_id == first)
    if name == "trials":
        number = sa.select(sa.literal(1).label("number")).cte("counted", recursive=True)
        number = number.union_all(
            sa.select(number.c.number + 1).where(number.c.number < trials - 1)
        )
        changed["number"] = number.c.number
        query = query.where(number.c.number < trials).order_by(number.c.number)
    else:
        query = query.where(every.c.trial_id > first).order_by(every.c.number)
        changed = _changed(table, every, postgres)
    if "attempt_id" in table.c:
        attempts = schema.tables["hpo_attempts"]
        query = query.where(attempts.c.trial_id == every.c.trial_id)
        changed["attempt_id"] = attempts.c.id
    keys = list(table.primary_key.columns)
    columns = [c for c in table.columns if len(keys) > 1 or c is not keys[0]]
    query = query.with_only_columns(*(changed.get(c.name, c) for c in columns))
    return sa.insert(table).from_select(columns, query)


def _changed(
    table: sa.Table, every: sa.Table, postgres: bool
) -> dict[str, sa.ColumnElement[object]]:
    """What is another in each clone, of the columns that `table` may have."""
    aside = every.c.number * 7919 % ASIDE
    changed: dict[str, sa.ColumnElement[object]] = {"trial_id": every.c.trial_id}
    for name in ("value", "intermediate_value"):
        if name in table.c:
            changed[name] = table.c[name] + aside
    if "param_value" in table.c:
        lr = 1e-4 + aside * 9e-6
        changed["param_value"] = sa.case(
            (table.c.param_name == "optim.lr", lr), else_=table.c.param_value
        )
    if "value_json" in table.c:
        folder = sa.literal("trial-").concat(sa.cast(every.c.number, sa.Text))
        changed["value_json"] = sa.func.replace(table.c.value_json, "trial-0000", folder)
    if "metrics" in table.c:
        text = sa.literal('{"valid_ppl": ').concat(
            sa.cast(LEVEL - table.c.step + aside, sa.Text)
        ).concat(', "step_seconds": 0.1}')  # fmt: skip
        changed["metrics"] = sa.cast(text, sa.JSON) if postgres else text
    return changed
