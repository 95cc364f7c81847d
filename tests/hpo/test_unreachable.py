"""A database whose server does not answer: a status of its own, by which supervisors try again."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.postgres import PostgresServer
from storage import Ledger, LedgerError, Unreachable
from trainer.engine.distributed import free_port

pytestmark = pytest.mark.slow

OPERATING = Path(__file__).parents[2] / "docs/operating.md"


def status_of(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "hpo", *words], capture_output=True, text=True, check=False
    )
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


def test_the_documented_unit_tries_again_without_a_database_and_not_with_wrong_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = re.findall(r"^```ini\n(.*?)^```", OPERATING.read_text(), re.M | re.S)[0]
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
    assert settings["Restart"] == "on-failure"
    assert settings["StartLimitIntervalSec"] == "0", "systemd gives up after five tries in 10 s"
    final = {*map(int, settings["RestartPreventExitStatus"].split())}
    monkeypatch.chdir(tmp_path)
    away, said = status_of("resume", "x", "--storage", f"postgresql://h@127.0.0.1:{free_port()}/d")
    assert away == 75
    assert "cannot be opened" in said
    assert away not in {0, *final}, "it is started again"
    assert status_of("resume", "x", "--storage", "sqlite:///nothing.db")[0] in final


def test_a_server_that_says_no_is_wrong_input(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    missing = url.rpartition("/")[0] + "/no_such_database"
    with pytest.raises(LedgerError, match="does not exist") as raised:
        Ledger.open(missing)
    assert not isinstance(raised.value, Unreachable)


def test_a_server_that_never_answers_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.postgresql.CONNECT_SECONDS", 2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        with pytest.raises(Unreachable):
            Ledger.open(f"postgresql://h@127.0.0.1:{deaf.getsockname()[1]}/d")
