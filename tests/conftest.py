"""Fixtures that start real parts, databases; and secrets, which must be found nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.postgres import INSTALLED, PostgresServer
from tests import planted
from tests.databases import empty_database, server_stopped, shared_server

os.environ.update(planted.SECRETS)
# Before anything imports numpy, here and in every process that a test starts: matrices are tiny,
# and threads that wait for each other on busy cores double the time of what they compute.
os.environ["OMP_NUM_THREADS"] = "1"

END_TO_END = Path(__file__).with_name("end_to_end")
shown: list[str] = []  # where secrets were found


SLOW_FIXTURES = {"postgres_server", "uninterrupted", "world"}  # a server, trainings
SLOW_TESTS = {"test_importing_changes_nothing_in_the_process"}  # it starts a dozen processes


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files that are slow as a whole unread: Ray, say, is then imported by none."""
    if config.option.markexpr != "not slow":
        return None
    if collection_path.is_dir():
        return True if collection_path == END_TO_END else None
    if collection_path.suffix != ".py":
        return None
    return True if "\npytestmark = pytest.mark.slow\n" in collection_path.read_text() else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what is so by its place, or by what it asks for."""
    for item in items:
        assert isinstance(item, pytest.Function)
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if (
            END_TO_END in item.path.parents
            or item.originalname in SLOW_TESTS
            or SLOW_FIXTURES & {*item.fixturenames}
            or any(parameter == "postgresql" for parameter in parameters)
        ):
            item.add_marker(pytest.mark.slow)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Look for secrets in what a test printed."""
    shown.extend(report.nodeid for _, text in report.sections if planted.MARK in text)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop what the workers shared, and fail if a secret is in anything that the tests wrote."""
    if not hasattr(session.config, "workerinput"):  # the workers have ended by now
        written = session.config._tmp_path_factory.getbasetemp()
        with server_stopped(written) as data:
            shown.extend(map(str, planted.found_in(written, *data, *planted.ray_sessions())))
        shown.extend(planted.noted())
        if shown:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the secrets are."""
    for place in sorted(set(shown)):
        terminalreporter.write_line(f"a planted secret (tests/planted.py) is in {place}", red=True)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of this run of pytest, which all its workers share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def postgres_server(run_folder: Path) -> PostgresServer:
    """A real PostgreSQL server of our own, one for the whole run."""
    if not INSTALLED:
        pytest.skip("no PostgreSQL server (initdb, pg_ctl) is installed on this machine")
    return shared_server(run_folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once on each backend."""
    return empty_database(request, request.param, tmp_path / "hpo.db")
