"""Connections to PostgreSQL that wait for nothing without end: for no lock, and for no answer.

The server itself ends what takes too long. If it does not even do that, for it hangs, the client
closes the connection. Imported only where a ledger is in PostgreSQL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

import psycopg
from sqlalchemy.engine import URL

CONNECT_SECONDS = 10  # to a server that does not answer
LOCK_SECONDS = 8  # for another writer: less than a lease has left after a heartbeat
STATEMENT_SECONDS = 60
SILENT_SECONDS = 75  # after which a server that has not answered is given up
IDLE_SECONDS = 300  # how long a transaction may wait for us, a sampler's time included


class _Connection(psycopg.Connection[Any]):
    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        return super().wait(self._limited(gen), *args, **kwargs)

    def _limited(self, answer: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        deadline = time.monotonic() + SILENT_SECONDS
        try:
            wanted = next(answer)
            while True:
                ready = yield wanted  # nothing was ready if a moment has passed
                if not ready and time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(
                        f"the server has not answered for {SILENT_SECONDS} s"
                    )
                wanted = answer.send(ready)
        except StopIteration as done:
            return done.value


def connector(url: URL) -> Callable[[], psycopg.Connection[Any]]:
    """Return what connects to `url`. Raises RuntimeError for a database that is not in UTF-8."""
    # TCP's own settings would take a quarter of an hour to notice that a server is gone.
    noticed = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
    limits = {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": 15_000, **noticed}
    args, given = url.get_dialect()().create_connect_args(url)

    def connect() -> psycopg.Connection[Any]:
        connection = _Connection.connect(*args, **{**limits, **given, "client_encoding": "utf8"})
        encoding = connection.info.parameter_status("server_encoding")
        if encoding not in (None, "UTF8"):
            connection.close()
            raise RuntimeError(
                f"the database's encoding is {encoding}, which has no room for every character; "
                "make one with: createdb --encoding UTF8 --template template0 NAME"
            )
        seconds = {
            "lock_timeout": LOCK_SECONDS,
            "statement_timeout": STATEMENT_SECONDS,
            "idle_in_transaction_session_timeout": IDLE_SECONDS,
        }
        settings = ", ".join(f"set_config('{n}', '{s}s', false)" for n, s in seconds.items())
        connection.execute(f"SELECT {settings}")
        connection.commit()
        return connection

    return connect
