"""Empty databases on each backend; PostgreSQL is started once for a whole run of pytest."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from benchmarks.postgres import PostgresServer
from tests import planted

_KNOWN = "postgres.pickle"  # says where the server is


def empty_database(request: pytest.FixtureRequest, backend: str, file: Path) -> str:
    """Return the URL of an empty database on `backend`; a SQLite database is in `file`."""
    if backend == "sqlite":
        return f"sqlite:///{file}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()


def shared_server(folder: Path) -> PostgresServer:
    """Return the server that the file in `folder` names; whichever process asks first starts it."""
    with FileLock(folder / "postgres.lock"):
        known = folder / _KNOWN
        if not known.exists():
            # Not in `folder`: whenever pytest starts somewhere, it closes its folders to `nobody`.
            data = Path(tempfile.mkdtemp(prefix="hpo-tests-postgres-"))
            server = PostgresServer(data, planted.DATABASE_PASSWORD)
            server.start()
            known.write_bytes(pickle.dumps((server, data)))
        found: PostgresServer = pickle.loads(known.read_bytes())[0]  # noqa: S301 - our own file
        return found


@contextmanager
def server_stopped(folder: Path) -> Iterator[list[Path]]:
    """Stop the server that `folder` names, if any; its data is there until the block ends."""
    if not (folder / _KNOWN).exists():
        yield []
        return
    server, data = pickle.loads((folder / _KNOWN).read_bytes())  # noqa: S301 - our own file
    (folder / _KNOWN).unlink()
    server.stop()
    yield [data]
    shutil.rmtree(data)
