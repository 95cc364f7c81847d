"""Names and folders cannot lead out of their place, typed or read from somebody else's database."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import optuna
import pytest
import typer
from optuna.study import StudyDirection

from hpo.cli import app, main
from hpo.control.places import study_folder, trial_folder
from hpo.service.preflight import check_run_folders
from hpo.study.load import load_study
from storage import Ledger, LedgerError, StudyRecord, TeacherRecord, check_study_name
from storage.names import is_study_name
from tests.hpo.study_files import written
from trainer.config.settings import ConfigError
from trainer.config.train import resolve
from trainer.teaching.teacher import content_folder

pytestmark = pytest.mark.slow

OUTSIDE = [
    "../x", "a/../../x", "/tmp/x", "..", ".", ".hidden", "", "a\0b", "a\nb", "tiny\n", "a b", "-x",
    "x" * 300, "C:\\x", "a\\b", "~root", "$HOME",
    "tіny", "tiny\u202e", "ｔiny", "\x1b[2J", "a\ud800",
]  # fmt: skip
TYPED = [name for name in OUTSIDE if "\0" not in name and "\ud800" not in name]


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger in the working folder, with the study `tiny`."""
    monkeypatch.chdir(tmp_path)
    config = load_study(written(tmp_path))
    ledger = Ledger.open("sqlite:///hpo.db", create=True)
    directions = [objective.optuna_direction for objective in config.objectives]
    ledger.create_study("tiny", directions, ["valid_ppl"], config.to_document(), 2)
    return ledger


def commands_on_a_study() -> list[list[str]]:
    """Each command that takes a study's name, with what else it must have."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    more = {"show": ["0"], "enqueue": ["optim.lr=1e-3"], "transfer": ["tiny"]}
    return [
        [name, *more.get(name, [])]
        for name, command in group.commands.items()
        if any(parameter.name in ("name", "small") and parameter.param_type_name == "argument"
               for parameter in command.params)
    ]  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    sys.argv = ["hpo", *arguments]
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1), said
    assert said.err.isascii()
    return said.err


def test_no_study_can_be_called_what_leads_out_of_its_folder(ledger: Ledger) -> None:
    file = written(Path.cwd())
    for name in OUTSIDE:
        with pytest.raises(LedgerError, match="is no name for a study") as refusal:
            ledger.create_study(name, [StudyDirection.MINIMIZE], ["x"], "", 1)
        assert str(refusal.value).isprintable()
        assert len(str(refusal.value)) < 400
        with pytest.raises(ConfigError, match="study: .* is no name for a study"):
            load_study(file, name=name)
    assert len(ledger.studies()) == 1


@pytest.mark.parametrize("name", ["a", "A.b-c_d", "2026-01-01", "a..b", "x" * 100])
def test_a_name_of_plain_characters_will_do(name: str) -> None:
    check_study_name(name)
    assert is_study_name(name)


def test_every_command_refuses_a_study_that_another_program_has_called_so(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    for name in TYPED:
        ledger.create_study("other", [StudyDirection.MINIMIZE], ["x"], "", 1)
        with closing(sqlite3.connect("hpo.db")) as database, database:
            database.execute(
                "UPDATE studies SET study_name = ? WHERE study_name = 'other'", (name,)
            )
    assert [study.name for study in ledger.studies()] == ["tiny"]
    commands = commands_on_a_study()
    assert len(commands) >= 8
    needs = {
        "copy": ("--to", "sqlite:///other.db"),
        "report": ("-o", "page.html"),
        "export": ("-o", "table.csv"),
    }
    for command, *more in commands:
        options = needs.get(command, ())
        assert "is no name for a study" in refused(capsys, command, *options, "--", "../x", *more)
    for name in TYPED:
        assert "is no name for a study" in refused(capsys, "status", "--", name)
        assert "is no name for a study" in refused(capsys, "start", "study.yaml", f"--name={name}")
    assert sorted(path.name for path in Path().iterdir()) == ["hpo.db", "hpo.db-shm", "hpo.db-wal",
                                                              "study.yaml"]  # fmt: skip


def asked(ledger: Ledger, run_dir: str) -> StudyRecord:
    """The study `tiny` with a running trial that is said to be in `run_dir`."""
    trial = optuna.load_study(study_name="tiny", storage=ledger.storage).ask()
    trial.set_user_attr("run_dir", run_dir)
    return ledger.study("tiny")


def test_a_trial_goes_on_in_the_runs_folder_alone(ledger: Ledger, tmp_path: Path) -> None:
    record = asked(ledger, "/etc/\x1b[2J\n")
    with pytest.raises(ConfigError, match="give the --runs that it is in") as refusal:
        check_run_folders(ledger, record, "runs")
    assert str(refusal.value).isprintable()
    Path(trial_folder(study_folder("runs", "tiny"), 0)).mkdir(parents=True)  # moved there
    check_run_folders(ledger, record, "runs")
    check_run_folders(ledger, asked(ledger, str(tmp_path / "runs/tiny/trial-0001")), "runs")


def test_a_teacher_is_trained_in_its_own_contents_folder_alone(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path / "cache"))
    config = resolve({"steps": 3}, "teacher")
    folder = content_folder(config)
    right = TeacherRecord(folder.name, str(folder), config.to_yaml(), 3)
    teachers: list[TeacherRecord] = []
    monkeypatch.setattr(ledger, "teachers", lambda record: teachers)
    changed: list[dict[str, Any]] = [{"folder": "/etc"}, {"config": "{steps: 4}"}, {"config": "["}]
    for other in changed:
        teachers[:] = [right, replace(right, **other)]
        with pytest.raises(ConfigError):
            check_run_folders(ledger, ledger.study("tiny"), "runs")
    teachers[:] = [right]
    check_run_folders(ledger, ledger.study("tiny"), "runs")
    at = study_folder("memory://runs", "tiny")
    teachers[:] = [replace(right, folder=f"{at}/teachers/{right.key}")]
    check_run_folders(ledger, ledger.study("tiny"), "memory://runs")
    for key in ("../../other", "", f"{right.key}/x", right.key.upper()):
        teachers[:] = [replace(right, key=key, folder=f"{at}/teachers/{key}")]
        with pytest.raises(ConfigError, match="no key of a teacher's content"):
            check_run_folders(ledger, ledger.study("tiny"), "memory://runs")
