"""Where a study's run folders are: the ledger keeps it, whatever folder a command is typed in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from hpo.control.controller import Controller
from hpo.evaluation.evaluations import plan_evaluation
from hpo.evaluation.phase import prepare_launch
from hpo.service import launch
from hpo.service.launch import Launch
from hpo.service.opening import Place
from hpo.study.load import config_of, load_study
from storage import Ledger
from tests.hpo.evaluations import tuned
from tests.hpo.stage import finish
from tests.hpo.study_files import written
from trainer.config.settings import ConfigError

Start = Callable[..., Launch]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts the study `tiny` and has one trial end; the working folder is then another."""
    monkeypatch.delenv("HPO_RUNS", raising=False)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = load_study(written(tmp_path), trials=2)

    def started(runs: str | None = None) -> Launch:
        place = Place(f"sqlite:///{tmp_path}/hpo.db", runs)
        begun = launch.start(config, "study.yaml", place, may_rename=False, say=print)
        lease = begun.ledger.acquire(begun.record, runs=begun.runs)
        controller = Controller(begun.ledger, begun.record, config, lease, begun.runs)
        number = finish(controller)
        (Path(begun.runs) / f"tiny/trial-{number:04d}").mkdir(parents=True)
        begun.ledger.release(lease)
        monkeypatch.chdir(tmp_path / "there")
        return begun

    return started


def resumed(begun: Launch, runs: str | None = None) -> Launch:
    place = Place(begun.place.storage, runs)
    return launch.resume("tiny", place, trials=None, same_machine=True, say=print)


def kept(begun: Launch) -> str | None:
    return begun.ledger.study("tiny").runs


def test_a_resume_typed_elsewhere_goes_on_where_the_study_began(
    start: Start, tmp_path: Path
) -> None:
    begun = start()
    assert kept(begun) == resumed(begun).runs == str(tmp_path / "here/runs")


def test_the_environment_stands_in_for_the_option_and_the_option_comes_first(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_RUNS", str(tmp_path / "by-environment"))
    begun = start()
    assert kept(begun) == str(tmp_path / "by-environment")
    monkeypatch.setenv("HPO_RUNS", str(tmp_path / "changed"))
    assert resumed(begun).runs == str(tmp_path / "changed")
    assert resumed(begun, "given").runs == str(tmp_path / "there/given")


def test_another_place_is_said_and_kept_unless_another_controller_runs_the_study(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = start()
    again = resumed(begun, "other")
    said = f"its run folders go to {tmp_path}/there/other from now on, and were in {begun.runs}"
    assert said in capsys.readouterr().out
    first = again.ledger.acquire(again.record, runs=again.runs)
    assert kept(begun) == str(tmp_path / "there/other")
    again.ledger.acquire(again.record, runs="/mounted/otherwise", join=True)
    assert kept(begun) == str(tmp_path / "there/other")
    again.ledger.release(first)


def test_a_place_that_has_gone_is_asked_for(start: Start, tmp_path: Path) -> None:
    begun = start()
    (tmp_path / "here/runs").rename(tmp_path / "moved")
    with pytest.raises(
        ConfigError, match="there is no .*/here/runs/tiny any more; give the --runs"
    ):
        resumed(begun)
    assert resumed(begun, str(tmp_path / "moved")).runs == str(tmp_path / "moved")


def test_a_place_in_the_ledger_that_is_none_is_refused(start: Start) -> None:
    begun = start()
    begun.ledger.release(begun.ledger.acquire(begun.record, runs="../elsewhere"))
    with pytest.raises(ConfigError, match=r"'\.\./elsewhere', which is no absolute path"):
        resumed(begun)


def test_a_study_of_an_older_ledger_goes_on_where_its_last_trial_is(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = start("older")
    ledger = begun.ledger
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE hpo_studies SET runs = NULL")
    again = resumed(begun)
    assert again.runs == str(tmp_path / "here/older")
    ledger.release(ledger.acquire(again.record, runs=again.runs))
    assert kept(begun) == again.runs
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE hpo_studies SET runs = NULL")
    shutil.rmtree(again.runs)
    assert resumed(begun).runs == str(tmp_path / "there/runs")


def test_an_evaluation_goes_beside_the_study_and_stays_there(url: str, tmp_path: Path) -> None:
    stage = tuned(url, 5.0, 6.0)
    stage.ledger.release(stage.ledger.acquire(stage.record, runs=str(tmp_path / "far")))
    (tmp_path / "far/played").mkdir(parents=True)
    plan = plan_evaluation(stage.ledger, "played", top=1, seeds=1)
    begun = prepare_launch(stage.ledger, plan, Place(None))
    assert begun is not None
    ledger, record = Ledger.open(url), begun.record
    assert (begun.runs, record.runs) == (str(tmp_path / "far"),) * 2
    lease = ledger.acquire(record, trials=begun.trials, runs=str(tmp_path / "near"))
    finish(Controller(ledger, ledger.study(record.name), config_of(record), lease, "near"))
    ledger.release(lease)
    assert prepare_launch(ledger, plan, Place(None)) is None, "done, and its folder not looked for"
    more = plan_evaluation(ledger, "played", top=1, seeds=2)
    with pytest.raises(ConfigError, match=r"played\.evaluation: its run folders were in .*/near"):
        prepare_launch(ledger, more, Place(None))
    assert len(ledger.trials(record, *TrialState)) == 1, "nothing was written"
