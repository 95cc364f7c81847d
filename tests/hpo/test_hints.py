"""The command lines that we print find the ledger that they are about, and show no password."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.commands import reading, running
from hpo.service import launch
from hpo.service.opening import Place
from hpo.study.hints import command
from hpo.study.load import load_study
from storage import Ledger, LedgerError
from storage.database import shown
from tests.hpo.stage import Stage, finish
from tests.hpo.study_files import written
from trainer.config.settings import ConfigError


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPO_STORAGE", raising=False)
    return Stage("sqlite:///my other.db")


def test_a_command_names_the_ledger_that_it_would_not_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPO_STORAGE", raising=False)
    assert command("hpo resume a", "sqlite:///hpo.db") == "hpo resume a"
    assert command("hpo resume a", "sqlite:///x.db") == "hpo resume a --storage sqlite:///x.db"
    monkeypatch.setenv("HPO_STORAGE", "postgresql://me:secret@host/db")
    assert command("hpo resume a", shown("postgresql://me:secret@host/db")) == "hpo resume a"
    assert "hpo.db" in command("hpo resume a", "sqlite:///hpo.db")


def test_what_to_type_next_has_the_storage_that_was_typed(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(stage.controller())
    stage.lapse()
    url = "sqlite:///my other.db"
    more = "--storage 'sqlite:///my other.db'"
    reading.best("played", url)
    reading.status("played", url)
    running.enqueue("played", ["optim.lr=1e-3"], url)
    said = capsys.readouterr().out
    for line in (
        f"next: hpo show played 0 {more}, hpo trials played {more}, hpo dashboard {more}",
        f"run by: nobody; `hpo resume played {more}`",
        f"it comes first at: hpo resume played {more}",
    ):
        assert line in said.replace("\n", " ").replace("  ", " ")
    with pytest.raises(ConfigError) as refused:
        study = load_study(written(Path(), study="played"))
        launch.start(study, "study.yaml", Place(url), may_rename=False, say=print)
    assert f"`hpo resume played {more}` goes on with it" in str(refused.value)
    monkeypatch.setenv("HPO_STORAGE", url)
    reading.status("played")
    assert "--storage" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("postgresql://me:p@ss@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p@s/s@host:5432/db", "postgresql://me:***@host:5432/db"),
    ],
)
def test_a_password_with_an_at_sign_is_refused_and_no_part_of_it_shown(
    url: str, hidden: str
) -> None:
    assert shown(url) == hidden
    with pytest.raises(LedgerError) as refused:
        Ledger.open(url)
    assert str(refused.value) == f"{hidden}: the password has an @ in it: write %40 for it"


def test_other_addresses_with_at_signs_are_shown_as_they_are() -> None:
    for url in ("postgresql://me@host:5432/db", "postgresql://me%40there@host/db"):
        assert shown(url) == url
    assert shown("postgresql://me@azure:secret@host/db") == "postgresql://me%40azure:***@host/db"
