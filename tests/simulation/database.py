"""A real SQLite file whose statements, commits and clock belong to a world.

One file and its connections serve all schedules of a process: between two of them the file is
emptied, because connections that know their statements are half of the speed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import storage.database
from storage import Ledger
from tests.simulation.world import Actor, Killed, Lock, Process, World

Fault = Callable[[Actor, str], str | None]  # what befalls a commit: refused, lost, or nothing
UNIX_DAYS = 2440587.5  # julian day of 1970


class Database:
    """The ledger's database, as every process of a world reaches it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.db"
        self.url = f"sqlite:///{self.path}"
        before = storage.database.engine_options
        storage.database.engine_options = lambda url: {
            "connect_args": {"timeout": 0, "check_same_thread": False},
            "pool_size": 64,
            "pool_use_lifo": True,
        }
        try:
            self.backend = storage.database.open_storage(self.url, create=True)
        finally:
            storage.database.engine_options = before
        engine = self.backend.engine
        engine.dispose()
        sa.event.listen(engine, "connect", self._connected)
        sa.event.listen(engine, "do_execute", self._execute)
        sa.event.listen(engine, "do_executemany", self._execute_many)
        sa.event.listen(engine, "do_execute_no_params", self._execute_plain)
        engine.dialect.do_commit = self._commit
        engine.dialect.do_rollback = self._rollback
        engine.dialect.do_close = self._close
        self.reader = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        names = self.reader.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE '%virtual%'"
        )
        versions = {"alembic_version", "hpo_alembic_version", "version_info"}
        self._tables = sorted({name for (name,) in names} - versions)
        self.world: World | None = None
        self.ahead = 0.0  # of the database's clock
        self.on_commit: Callable[[Actor, set[str]], None] = lambda actor, written: None
        self.commit_fault: Callable[[Actor], str | None] = lambda actor: None
        self.commits = 0

    def begin(self, world: World, rows: dict[str, list[tuple[Any, ...]]], budget: int = 0) -> None:
        """Serve `world`, beginning with nothing but `rows`, by table, and a budget of trials."""
        self.ahead = 0.0
        self._away: dict[Process | None, float] = {}
        self._open: dict[Any, Actor] = {}  # who has a transaction, by connection
        self._severed: set[Any] = set()
        self._waiting: list[Actor] = []
        self._written: dict[Any, set[str]] = {}
        self.world = None
        connection = self.reader
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("BEGIN IMMEDIATE")
        for table in self._tables:
            connection.execute(f"DELETE FROM {table}")
        for table, found in rows.items():
            marks = ", ".join("?" * len(found[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", found)
        connection.execute("UPDATE hpo_studies SET budget_trials = ?", (budget,))
        connection.execute("COMMIT")
        self.world = world

    def end(self) -> None:
        """Serve nobody."""
        self.world = None

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows that there are now."""
        found = {t: self.reader.execute(f"SELECT * FROM {t}").fetchall() for t in self._tables}
        return {table: rows for table, rows in found.items() if rows}

    def ledger(self) -> Ledger:
        """The ledger as a process opens it: with a cache and locks of its own."""
        ledger = Ledger(self.backend, self.url)
        if self.world is not None:
            ledger._writing = Lock(self.world, "writing")  # type: ignore[assignment]
            ledger.storage._lock = Lock(self.world, "cache")  # type: ignore[attr-defined]
        return ledger

    def now(self) -> float:
        """The time by the database's clock."""
        return self.world.now + self.ahead if self.world else 0.0

    def go_away(self, seconds: float, process: Process | None) -> None:
        """Be away for `process`, or for everybody: transactions are cut off."""
        assert self.world is not None
        until = self.world.now + seconds
        self._away[process] = max(until, self._away.get(process, 0.0))
        for connection, actor in [*self._open.items()]:
            if process is None or actor.process is process:
                connection.rollback()
                self._forget(connection)
                self._severed.add(connection)

    def _is_away(self, process: Process) -> bool:
        if not self._away:
            return False
        assert self.world is not None
        now = self.world.now
        return self._away.get(None, 0.0) > now or self._away.get(process, 0.0) > now

    def _connected(self, connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")
        connection.create_function("julianday", 1, lambda _: UNIX_DAYS + self.now() / 86400.0)

    def _execute(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        return self._run(cursor, statement, lambda: cursor.execute(statement, parameters))

    def _execute_many(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        return self._run(cursor, statement, lambda: cursor.executemany(statement, parameters))

    def _execute_plain(self, cursor: Any, statement: str, context: Any) -> bool:
        return self._run(cursor, statement, lambda: cursor.execute(statement))

    def _run(self, cursor: Any, statement: str, execute: Callable[[], Any]) -> bool:
        world = self.world
        if world is None or world.current is None:
            return False
        me, connection = world.current, cursor.connection
        world.point(statement)
        self._check(me, connection)
        patience = world.now + storage.database.BUSY_SECONDS
        while True:
            try:
                execute()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or world.now >= patience:
                    raise
                self._waiting.append(me)
                world.wait(patience - world.now)
                self._check(me, connection)
            else:
                break
        if connection.in_transaction:
            self._open[connection] = me
            if cursor.rowcount and statement[0] in "UIDR":
                words = statement.split(None, 3)
                table = words[1] if words[0] == "UPDATE" else words[2]
                self._written.setdefault(connection, set()).add(table)
        return True

    def _check(self, me: Actor, connection: Any) -> None:
        """Raise where the database does not answer."""
        if connection in self._severed:
            self._severed.discard(connection)
            raise sqlite3.OperationalError("server closed the connection unexpectedly")
        if self._is_away(me.process):
            if connection.in_transaction:
                connection.rollback()
                self._forget(connection)
            raise sqlite3.OperationalError("unable to open database file")

    def _commit(self, proxied: Any) -> None:
        connection = getattr(proxied, "dbapi_connection", proxied)
        world = self.world
        me = world.current if world else None
        if world is None or me is None or not connection.in_transaction:
            if connection in getattr(self, "_severed", ()):
                self._severed.discard(connection)
                raise sqlite3.OperationalError("server closed the connection unexpectedly")
            connection.commit()
            return
        world.point("COMMIT")
        self._check(me, connection)
        fault = self.commit_fault(me)
        if me.process.dead:
            raise Killed
        if fault == "refused":
            connection.rollback()
            self._forget(connection)
            raise sqlite3.OperationalError("disk I/O error")
        connection.commit()
        self.commits += 1
        written = self._written.pop(connection, set())
        self._forget(connection)
        world.note(f"committed {' '.join(sorted(written))}")
        self.on_commit(me, written)
        if fault == "lost":
            raise sqlite3.OperationalError("the answer to the commit was lost")
        if fault == "killed":
            world.kill(me.process)
        world.point("committed")

    def _rollback(self, proxied: Any) -> None:
        connection = getattr(proxied, "dbapi_connection", proxied)
        connection.rollback()
        if self.world is not None:
            self._severed.discard(connection)
            self._forget(connection)

    def _close(self, connection: Any) -> None:
        connection.rollback()  # a statement that is not done would keep the lock
        connection.close()
        if self.world is not None:
            self._severed.discard(connection)
            self._forget(connection)

    def _forget(self, connection: Any) -> None:
        """Know that it has no transaction any more: who waits for the lock tries again."""
        self._written.pop(connection, None)
        if self._open.pop(connection, None) and self.world is not None:
            for actor in self._waiting:
                self.world.wake(actor)
            self._waiting.clear()
