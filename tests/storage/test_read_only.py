"""A SQLite ledger that one may only read: reading commands read it, others say so in one line."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpo.commands import operating, reading, running
from storage import Ledger, LedgerError
from storage.database import has_ledger
from tests.hpo.stage import Stage, finish

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others may look into, which pytest's own may not be."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    made.chmod(0o755)
    shutil.rmtree(made)


@contextmanager
def only_reading(folder: Path) -> Iterator[None]:
    """The folder and its files may be read and not written, by root neither."""
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def played(folder: Path) -> str:
    """The URL of a ledger with a study that nobody runs; its file is in WAL mode."""
    url = f"sqlite:///{folder}/hpo.db"
    stage = Stage(url)
    finish(stage.controller())
    stage.lapse()
    stage.ledger.engine.dispose()
    return url


def test_reading_commands_need_no_writing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    url = played(folder)
    monkeypatch.chdir(tmp_path)
    reading.best("played", url)  # what is imported late is imported while we may read everything
    before = sorted(path.name for path in folder.iterdir())
    with only_reading(folder):
        assert has_ledger(url)
        reading.list_studies(url)
        reading.status("played", url)
        reading.list_trials("played", url)
        reading.show("played", 0, storage=url)
        reading.best("played", url)
        ledger = Ledger.open(url)
        assert len(ledger.trials(ledger.study("played"))) == 0
        for write in (
            lambda: ledger.acquire(ledger.study("played")),
            lambda: ledger.enqueue(ledger.study("played"), []),
            lambda: ledger.request_stop(ledger.study("played")),
            lambda: running.enqueue("played", ["optim.lr=1e-3"], url),
        ):
            with pytest.raises(LedgerError, match=r"hpo\.db: you may read it, and not write it"):
                write()
        with pytest.raises(LedgerError, match=r"other\.db: the folder .* cannot be written"):
            Ledger.open(f"sqlite:///{folder}/other.db", create=True)
        ledger.engine.dispose()
    assert "best of played: trial 0" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == before
    operating.copy("played", to=f"sqlite:///{tmp_path}/copy.db", storage=url)


def test_what_is_in_the_log_of_a_database_that_is_open_elsewhere_is_read(folder: Path) -> None:
    url = f"sqlite:///{folder}/hpo.db"
    stage = Stage(url)
    finish(stage.controller())  # it is open, and its log is not in the file yet
    assert (folder / "hpo.db-wal").stat().st_size > 0
    with only_reading(folder):
        ledger = Ledger.open(url)
        assert ledger.trial_counts(ledger.study("played"))["COMPLETE"] == 1
        ledger.engine.dispose()


def test_a_ledger_of_an_older_version_says_that_it_must_be_copied(folder: Path) -> None:
    url = played(folder)
    ledger = Ledger.open(url)
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE hpo_alembic_version SET version_num = '0006'")
    ledger.engine.dispose()
    with only_reading(folder), pytest.raises(LedgerError, match="you may not write it; copy it"):
        Ledger.open(url)
