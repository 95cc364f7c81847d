"""Fixtures that start real parts, databases; and secrets, which must be found nowhere."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import planted

os.environ.update(planted.SECRETS)

shown: list[str] = []  # where secrets were found

POSTGRES_TOOLS = all(shutil.which(tool) for tool in ("initdb", "pg_ctl", "postgres"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Look for secrets in what a test printed."""
    shown.extend(report.nodeid for _, text in report.sections if planted.MARK in text)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if a secret is in anything that the tests wrote; the workers have ended by now."""
    if not hasattr(session.config, "workerinput"):
        written = session.config._tmp_path_factory.getbasetemp()
        shown.extend(map(str, planted.found_in(written, *planted.ray_sessions())))
        if shown:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the secrets are."""
    for place in sorted(set(shown)):
        terminalreporter.write_line(f"a planted secret (tests/planted.py) is in {place}", red=True)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL server of our own, on a free port of this machine."""
    if not POSTGRES_TOOLS:
        pytest.skip("no PostgreSQL server (initdb, pg_ctl) is installed on this machine")
    folder = tmp_path_factory.mktemp("postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    as_user = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, "nobody")
        for parent in folder.parents:
            if parent.owner() == "root" and parent.stat().st_mode & 0o005 != 0o005:
                parent.chmod(parent.stat().st_mode | 0o011)
    data = folder / "data"
    run = [*as_user, "env", "-C", str(folder)]
    subprocess.run([*run, "initdb", "-D", data, "-A", "trust", "-U", "hpo"], check=True,
                   capture_output=True)  # fmt: skip
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run([*run, "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start"],
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    yield f"postgresql://hpo:{planted.DATABASE_PASSWORD}@127.0.0.1:{port}/"
    subprocess.run([*run, "pg_ctl", "-D", data, "-m", "immediate", "stop"], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once on each backend."""
    return empty_database(request, request.param, tmp_path / "hpo.db")


def empty_database(request: pytest.FixtureRequest, backend: str, file: Path) -> str:
    """The URL of an empty database on `backend`; of SQLite's in `file`."""
    if backend == "sqlite":
        return f"sqlite:///{file}"
    import psycopg

    server: str = request.getfixturevalue("postgres_url")
    name = f"test_{os.urandom(4).hex()}"
    with psycopg.connect(f"{server}postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server + name
