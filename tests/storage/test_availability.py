"""A database that is slow, locked, silent, read-only for a while, new, or in another encoding."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from benchmarks.postgres import PostgresServer
from hpo.control.messages import Message
from storage import Ledger, LedgerError, is_away
from storage.models import ControllerRow
from tests.databases import empty_database
from tests.hpo.stage import Stage, ppl

pytestmark = pytest.mark.slow


@pytest.fixture
def server_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return empty_database(request, "postgresql", tmp_path / "unused")


@contextmanager
def administrator(url: str) -> Iterator[psycopg.Connection]:
    """A connection beside the ledger's, on the same server."""
    with psycopg.connect(f"{url.rpartition('/')[0]}/postgres", autocommit=True) as connection:
        yield connection


def database_of(url: str) -> str:
    return url.rpartition("/")[2]


def backends(connection: psycopg.Connection, url: str) -> list[int]:
    found = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = %s", [database_of(url)]
    )
    return [pid for (pid,) in found]


def test_a_failover_to_a_server_that_takes_no_writes_is_an_outage(
    server_url: str, request: pytest.FixtureRequest
) -> None:
    stage = Stage(server_url)
    controller = stage.controller()
    assert controller.next() is not None
    server: PostgresServer = request.getfixturevalue("postgres_server")
    with server.read_only(server_url):
        for step in (100, 200):
            assert controller.handle(0, 1, Message("evaluated", step, ppl(9.0), first_step=0))
        assert controller.waits_for_database
    controller._database._next = 0.0
    controller.mend()
    assert not controller.waits_for_database
    assert stage.trials[0].intermediate_values == {100: 9.0, 200: 9.0}


def test_a_lock_that_somebody_keeps_is_an_outage(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgresql.LOCK_SECONDS", 0.2)
    stage = Stage(server_url)
    controller = stage.controller()
    assert controller.next() is not None
    with Ledger.open(server_url).sessions() as other:
        other.execute(sa.select(ControllerRow).with_for_update())
        assert controller.handle(0, 1, Message("evaluated", 100, ppl(9.0), first_step=0))
        assert controller.waits_for_database
        other.rollback()
    controller._database._next = 0.0
    controller.mend()
    assert stage.trials[0].intermediate_values == {100: 9.0}


def test_connections_that_hang_are_given_up_and_others_made(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(server_url)
    controller = stage.controller()
    assert controller.next() is not None
    monkeypatch.setattr("storage.postgresql.SILENT_SECONDS", 0.5)
    with administrator(server_url) as admin:
        hung = backends(admin, server_url)
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert controller.handle(0, 1, Message("evaluated", 100, ppl(9.0), first_step=0))
            controller._database._next = 0.0
            controller.mend()
            assert stage.trials[0].intermediate_values == {100: 9.0}
        finally:
            for pid in hung:
                os.kill(pid, signal.SIGCONT)


def test_processes_that_open_an_empty_database_at_once_wait_for_each_other(
    ledger_url: str,
) -> None:
    together = threading.Barrier(6)

    def opened(_: int) -> Ledger:
        together.wait()
        return Ledger.open(ledger_url, create=True)

    with ThreadPoolExecutor(6) as pool:
        assert [ledger.studies() for ledger in pool.map(opened, range(6))] == [[]] * 6


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_without_room_for_every_character_is_refused(
    server_url: str, encoding: str
) -> None:
    name = f"{database_of(server_url)}_{encoding.lower()}"
    with administrator(server_url) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    with pytest.raises(LedgerError, match=f"encoding is {encoding}.*createdb --encoding UTF8"):
        Ledger.open(f"{server_url.rpartition('/')[0]}/{name}", create=True)


def test_conflicts_and_limits_pass_and_a_missing_table_does_not(server_url: str) -> None:
    engine = Ledger.open(server_url, create=True).engine
    for statement, passes in (
        ("SET statement_timeout = 10; SELECT pg_sleep(1)", True),
        ("SET TRANSACTION READ ONLY; DELETE FROM hpo_metrics", True),
        ("SELECT * FROM nowhere", False),
        ("SELECT 1/0", False),
    ):
        with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as raised:
            connection.exec_driver_sql(statement)
        assert is_away(raised.value) is passes, statement
