"""Opening the database: its URL, SQLite's and PostgreSQL's settings, tables and migrations.

A password in a URL never leaves this file: every URL in a message has gone through `shown`.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from storage.availability import is_away, leave_read_only_servers
from storage.errors import LedgerError, Unreachable, in_one_line
from storage.following import follow_deletions
from storage.session import JoinedSession
from storage.trials import TrialStorage

VERSION_TABLE = "hpo_alembic_version"
HEAD = "0007"
BUSY_SECONDS = 30  # how long SQLite waits for another writer
OPENING = 0x68706F  # the number of the lock, in PostgreSQL, of whoever makes or migrates tables

_PASSWORD = re.compile(r"^([^:/@]+://[^:/]*):.*@", re.DOTALL)  # with what is before it


def shown(url: str) -> str:
    """Return `url` without its password, for people and logs."""
    try:
        # Whatever comes before the last @ may be of a password that has one.
        parsed = make_url(_PASSWORD.sub(r"\1:***@", url))
        hidden = {k: "***" if "password" in k.lower() else v for k, v in parsed.query.items()}
        return parsed.set(query=hidden).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "the storage URL"


def open_storage(url: str, *, create: bool) -> RDBStorage:
    """Open and migrate Optuna's storage on `url`; its sessions can join in one transaction.

    Makes the database file and the tables if `create`. A SQLite file that this user may only read
    is opened to be read. Raises LedgerError, which names the URL without its password, when it
    cannot be opened or was written by a newer version.
    """
    given = parse(url)
    with plain_errors(given):
        check_sqlite_file(given, create)
        parsed = openable(given)
        version = _read_version(parsed)
        check_version(version, create)
        if version != HEAD and is_read_only(parsed):
            raise RuntimeError("an older version wrote it, and you may not write it; copy it first")
        with nullcontext() if version == HEAD else one_at_a_time(parsed):
            storage = TrialStorage(
                parsed.render_as_string(hide_password=False), engine_kwargs=engine_options(parsed)
            )
            if storage.engine.dialect.name == "sqlite" and not is_read_only(parsed):
                sa.event.listen(storage.engine, "connect", _set_up_sqlite)
            leave_read_only_servers(storage.engine)
            storage.engine.dispose()
            storage.scoped_session = scoped_session(
                sessionmaker(bind=storage.engine, class_=JoinedSession)
            )
            if version != HEAD:
                _migrate(storage.engine)
            if not is_read_only(parsed):
                follow_deletions(storage.engine)
    return storage


def openable(url: URL) -> URL:
    """Return `url` as it can be opened: a SQLite file that may not be written, to be read only."""
    if url.get_backend_name() != "sqlite":
        return url
    path = Path(url.database or "").absolute()
    if not path.is_file() or all(map(_may_write, (path, path.parent))):
        return url
    query = {"uri": "true", "mode": "ro"}
    # Its log and the log's index cannot be made here; without a log there is nothing to look up.
    if not any(path.with_name(f"{path.name}-{which}").exists() for which in ("wal", "shm")):
        query["immutable"] = "1"
    return url.set(database=f"file:{quote(str(path))}", query=query)


def is_read_only(url: URL) -> bool:
    """Whether `url`, as `openable` gives it, can only be read."""
    return url.query.get("mode") == "ro"


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


@contextmanager
def one_at_a_time(url: URL) -> Iterator[None]:
    """Wait until no other process makes or migrates the tables of the database at `url`."""
    if url.get_backend_name() == "sqlite":
        folder = os.open(Path(url.database or "").parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # on a file system that cannot lock
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
        return
    # The lock goes with its connection, however the block ends: no pool keeps it.
    options = engine_options(url) | {"pool_pre_ping": False}
    engine = sa.create_engine(url, poolclass=sa.NullPool, **options)
    with engine.connect() as connection:
        connection.exec_driver_sql("SET lock_timeout = 0")  # a migration may take its time
        connection.execute(sa.select(sa.func.pg_advisory_lock(OPENING)))
        connection.commit()
        yield


def has_ledger(url: str) -> bool:
    """Return whether there is a ledger at `url`, and make none. Raises as `open_storage` does."""
    parsed = parse(url)
    with plain_errors(parsed):
        if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
            return False
        return _read_version(openable(parsed)) is not None


def clock(dialect: str) -> sa.ColumnElement[float]:
    """Return the SQL expression for the database's own clock, in seconds since 1970."""
    if dialect == "sqlite":
        return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double())
    return sa.literal_column("extract(epoch from clock_timestamp())::float8", sa.Double())


def time_of(session: Session) -> float:
    """Return the time by the database's clock, in seconds since 1970."""
    return float(session.scalar(sa.select(clock(session.get_bind().dialect.name))) or 0.0)


def parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
        if parsed.password is not None and "@" in f"{parsed.host}{parsed.database}":
            raise LedgerError(f"{shown(url)}: the password has an @ in it: write %40 for it")
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise LedgerError(
            f"{shown(url)}: not a storage URL; use sqlite:///hpo.db or "
            "postgresql://user@host/database"
        ) from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise LedgerError(f"{shown(url)}: the ledger is kept in SQLite or PostgreSQL only")
    return parsed


def check_sqlite_file(url: URL, create: bool) -> None:
    if url.get_backend_name() != "sqlite":
        return
    if not url.database or url.database == ":memory:":
        raise LedgerError(f"{url}: a ledger in memory is lost with its process; name a file")
    path = Path(url.database)
    if not create and not path.exists():
        raise LedgerError(f"{path}: no such database; `hpo start` makes one")
    if not path.parent.is_dir():
        raise LedgerError(f"{path}: the folder {path.parent} does not exist")
    if not path.exists() and not _may_write(path.parent):
        raise LedgerError(f"{path}: the folder {path.parent} cannot be written")


def engine_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_SECONDS}}
    from storage.postgresql import connector

    return {"pool_pre_ping": True, "creator": connector(url)}


def _set_up_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@contextmanager
def plain_errors(url: URL) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, ImportError, RuntimeError, OSError) as error:
        reason = in_one_line(error)
        for secret in (url.password, url.query.get("password")):
            reason = reason.replace(str(secret), "***") if secret else reason
        kind = Unreachable if _is_unreachable(error, url) else LedgerError
        raise kind(f"{shown(str(url))}: cannot be opened: {reason}") from None


def _is_unreachable(error: Exception, url: URL) -> bool:
    """Whether a server does not answer, or answers that it cannot serve anybody yet."""
    if not isinstance(error, sa.exc.DBAPIError) or not is_away(error):
        return False
    busy = ("starting up", "shutting down", "recovery mode", "too many", "remaining connection")
    text = str(error)
    if url.get_backend_name() == "sqlite":
        return "locked" in text
    return "FATAL" not in text or any(phrase in text for phrase in busy)


def _read_version(url: URL) -> str | None:
    # This takes an engine of its own, because Optuna's storage makes tables at once.
    engine = sa.create_engine(url, **engine_options(url))
    with engine.connect() as connection:
        version = tables_version(connection)
    engine.dispose()
    return version


def check_version(version: str | None, create: bool) -> None:
    if version is None and not create:
        raise RuntimeError("it holds no ledger; `hpo start` makes one")
    if version is not None and version > HEAD:
        raise RuntimeError(
            f"it was written by a newer version of this program (its tables are at {version}, "
            f"this program knows {HEAD}); upgrade layerdrop-hpo"
        )


def _migrate(engine: Engine) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            # sqlite3 begins no transaction for CREATE TABLE: a kill would leave half of the tables.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        if tables_version(connection) == HEAD:
            return
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def tables_version(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    version: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
    return version
