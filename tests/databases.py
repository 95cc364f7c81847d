"""Empty databases on each backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.postgres import PostgresServer


def empty_database(request: pytest.FixtureRequest, backend: str, file: Path) -> str:
    """The URL of an empty database on `backend`; of SQLite's in `file`."""
    if backend == "sqlite":
        return f"sqlite:///{file}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()
