"""Fixtures that start real parts: databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.postgres import INSTALLED, PostgresServer


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A real PostgreSQL server of our own."""
    if not INSTALLED:
        pytest.skip("no PostgreSQL server (initdb, pg_ctl) is installed on this machine")
    server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once on each backend."""
    return empty_database(request, request.param, tmp_path / "hpo.db")


def empty_database(request: pytest.FixtureRequest, backend: str, file: Path) -> str:
    """The URL of an empty database on `backend`; of SQLite's in `file`."""
    if backend == "sqlite":
        return f"sqlite:///{file}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()
