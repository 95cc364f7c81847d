"""Copying a study, Optuna's rows and ours, to another ledger in SQLite or PostgreSQL.

The target gets all rows or none. The source is only read, and no run folder is touched.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from storage.belonging import belonging, study_tables
from storage.errors import LeaseHeld, LedgerError, StudyExists
from storage.leases import reap
from storage.ledger import Ledger
from storage.reading import COPY_OF, STUDIES
from storage.records import StudyRecord

BATCH_ROWS = 1000  # in memory at a time

Row = dict[str, Any]
Ids = dict[str, dict[int, int]]  # by table: the target's id for each id of the source


def copy_study(
    source: Ledger, study: StudyRecord, to: str, *, name: str, document: str
) -> dict[str, int]:
    """Copy `study` to the ledger at the URL `to`, as `name`, with the study file `document`.

    Makes the ledger if there is none. A copy under the same name keeps the study's uid; a copy
    under another name is a new study. Returns how many rows of each table were written and read
    back unchanged. Raises LeaseHeld while a controller runs the study, and StudyExists.
    """
    # A request to stop was for the source's controllers, at a time by the source's clock.
    changes: dict[str, Row] = {"hpo_studies": {"stop_requested_at": None}}
    if name != study.name:
        digest = hashlib.sha256(document.encode()).hexdigest()
        ours = {"document": document, "document_sha256": digest, "uid": uuid.uuid4().hex}
        changes["studies"] = {"study_name": name}
        changes["hpo_studies"] |= ours
    with _snapshot(source) as here:
        tables = study_tables(here)
        _refuse_running(source, study)
        target = Ledger.open(to, create=True)
        with _writing(target) as there:
            if there.scalar(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)):
                raise StudyExists(f"{target.url}: it has a study {name}; --as gives another name")
            copied = {table.name: table for table in study_tables(there)}
            ids: Ids = defaultdict(dict)
            counts = {}
            for table in tables:
                if table.name not in copied:
                    raise LedgerError(f"{target.url}: it has no table {table.name}")
                pair, change = (table, copied[table.name]), changes.get(table.name, {})
                counts[table.name] = _copy_rows(here, there, pair, study.study_id, change, ids)
            study_id = ids["studies"][study.study_id]
            if name != study.name:
                _write_lineage(
                    there, copied["study_system_attributes"], study_id, source.uids(study)
                )
            _translate_parents(there, copied["study_system_attributes"], study_id, ids)
            _close_lost(there, study_id)
    return counts


def _copy_rows(
    here: Connection,
    there: Connection,
    tables: tuple[sa.Table, sa.Table],
    study_id: int,
    change: Row,
    ids: Ids,
) -> int:
    """Copy one table's rows, read them back, and return how many there are."""
    source, target = tables
    sent, read = _Checksum(), _Checksum()
    for rows in _rows(here, source, study_id):
        sent.add(_write(there, target, rows, change, ids))
    for rows in _rows(there, target, ids["studies"][study_id]):
        read.add(rows)
    if read != sent:
        raise LedgerError(f"{target.name}: what was written is not what is read; nothing is copied")
    return read.rows


@contextmanager
def _snapshot(ledger: Ledger) -> Iterator[Connection]:
    """Yield a connection that sees the database as it is at one moment."""
    with ledger.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        else:
            connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


@contextmanager
def _writing(ledger: Ledger) -> Iterator[Connection]:
    """Yield a connection whose writes are one transaction."""
    with ledger.engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


def _refuse_running(source: Ledger, study: StudyRecord) -> None:
    for controller in source.controllers(study):
        if controller.alive:
            raise LeaseHeld(
                f"study {study.name} is being run by {controller}: `hpo stop {study.name}` first; "
                f"if it was killed, its lease runs out in {controller.expires_in:.0f} s",
                {},
                controller.expires_in,
            )


def _rows(connection: Connection, table: sa.Table, study_id: int) -> Iterator[list[Row]]:
    """Yield the study's rows in the order of their keys, in batches."""
    query = sa.select(table).where(belonging(table, study_id)).order_by(*table.primary_key)
    found = connection.execute(query, execution_options={"yield_per": BATCH_ROWS})
    for batch in found.mappings().partitions():
        yield [{str(column): value for column, value in row.items()} for row in batch]


def _write(
    connection: Connection, table: sa.Table, rows: list[Row], changes: Row, ids: Ids
) -> list[Row]:
    """Insert `rows` with `changes` and the target's ids; return what was inserted."""
    own = table.autoincrement_column
    moved = [{**row, **changes} for row in rows]
    for key in table.foreign_keys:
        column, parents = key.parent.name, ids[key.column.table.name]
        for row in moved:
            row[column] = None if row[column] is None else parents[row[column]]
    if own is None:
        connection.execute(sa.insert(table), moved)
        return moved
    before = [row.pop(own.name) for row in moved]
    statement = sa.insert(table).returning(own, sort_by_parameter_order=True)
    after = connection.scalars(statement, moved).all()
    ids[table.name].update(zip(before, after, strict=True))
    return [{**row, own.name: new} for row, new in zip(moved, after, strict=True)]


class _Checksum:
    """The number of rows and the sum of their digests, which do not depend on the rows' order."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0

    def add(self, rows: list[Row]) -> None:
        self.rows += len(rows)
        for row in rows:
            text = json.dumps(row, sort_keys=True, default=str)
            self._sum += int.from_bytes(hashlib.sha256(text.encode()).digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Checksum) and (self.rows, self._sum) == (other.rows, other._sum)


def _translate_parents(connection: Connection, table: sa.Table, study_id: int, ids: Ids) -> None:
    """Translate the trial ids that Optuna's genetic samplers keep in JSON, as parents."""
    kept = (table.c.study_id == study_id) & table.c.key.contains(":parent:", autoescape=True)
    for row in connection.execute(sa.select(table).where(kept)).mappings().all():
        parents = [ids["trials"][trial_id] for trial_id in json.loads(row["value_json"])]
        this = (table.c.study_id == study_id) & (table.c.key == row["key"])
        connection.execute(sa.update(table).where(this).values(value_json=json.dumps(parents)))


def _write_lineage(
    connection: Connection, table: sa.Table, study_id: int, uids: tuple[str, ...]
) -> None:
    """Note which studies this is a copy of: it may go on in copies of their run folders."""
    row = {"study_id": study_id, "key": COPY_OF}
    there = sa.and_(*(table.c[key] == value for key, value in row.items()))
    connection.execute(sa.delete(table).where(there))
    connection.execute(sa.insert(table).values(**row, value_json=json.dumps(uids)))


def _close_lost(connection: Connection, study_id: int) -> None:
    """End what a dead controller left open: no lease of the source is valid in the target."""
    with Session(connection) as session:
        reap(session, study_id, math.inf, lambda _: True)
        session.flush()
