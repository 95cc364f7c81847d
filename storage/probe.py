"""Trying out a database for `hpo doctor`, which leaves it as it was."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from storage.database import (
    HEAD,
    check_sqlite_file,
    check_version,
    clock,
    engine_options,
    parse,
    plain_errors,
    tables_version,
)
from storage.errors import LedgerError

ROUND_TRIPS = 5


@dataclass(frozen=True)
class Probe:
    """What a database answered."""

    server: str  # its name and version
    tables: str | None  # the version of our tables; None if there is no ledger yet
    newest_tables: str  # the version that this program writes
    clock_ahead: float  # seconds by which its clock is ahead of this process'
    round_trip: float  # median, in seconds


def probe(url: str) -> Probe | None:
    """Read and write at `url`, then roll back. Return None if no file is there but one can be made.

    Raises LedgerError, without the password, when that fails or the ledger is too new.
    """
    parsed = parse(url)
    check_sqlite_file(parsed, create=True)
    file = Path(parsed.database or "")
    if parsed.get_backend_name() == "sqlite" and not file.exists():
        if not os.access(file.parent, os.W_OK | os.X_OK):
            raise LedgerError(f"{file}: the folder {file.parent} cannot be written to")
        return None
    with plain_errors(parsed):
        engine = sa.create_engine(parsed, **engine_options(parsed))
        try:
            with engine.connect() as connection:
                return _try_out(connection)
        finally:
            engine.dispose()


def _try_out(connection: Connection) -> Probe:
    tables = tables_version(connection)
    check_version(tables, create=True)
    now = sa.select(clock(connection.dialect.name))
    took = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        ahead = float(connection.scalar(now) or 0.0) - time.time()
        took.append(time.perf_counter() - began)
    connection.rollback()
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    connection.exec_driver_sql("CREATE TABLE hpo_probe (x INTEGER)")
    connection.exec_driver_sql("INSERT INTO hpo_probe VALUES (1)")
    connection.rollback()
    numbers = ".".join(map(str, connection.dialect.server_version_info or ()))
    server = f"{connection.dialect.name} {numbers}"
    return Probe(server, tables, HEAD, ahead, statistics.median(took))
