"""`hpo.start`, `hpo.resume` and `hpo.load`, on a real ledger; attempts are played, without Ray."""

from __future__ import annotations

import copy
import inspect
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

import hpo
from benchmarks.tiny import STUDY as TINY
from hpo.api import _config
from hpo.commands import running
from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.reading import views
from hpo.study.config import StudyConfig
from hpo.study.load import load_study
from hpo.workers import dispatch, gang, ray_start
from storage import Ledger
from tests.hpo.stage import Stage, finish
from trainer.terminal import Quiet

pytestmark = pytest.mark.slow

ONE_RANK = {**TINY, "resources": {"ranks": 1}}
Play = Callable[[Controller], None]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPO_STORAGE", raising=False)
    return tmp_path


@pytest.fixture
def played(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Play], None]:
    """Have the next studies' attempts be what a play says."""
    monkeypatch.setattr(ray_start, "ray_session", lambda *_, **__: nullcontext(here))
    monkeypatch.setattr(gang, "request_stop", lambda: None)
    monkeypatch.setattr(gang, "progress", dict)

    def begin(play: Play) -> None:
        monkeypatch.setattr(dispatch, "run_attempts", lambda controller, _: play(controller))

    return begin


def to_the_end(controller: Controller) -> None:
    while (attempt := controller.next()) is not None:
        metrics = {"valid_ppl": 9.0 - attempt.number, "step_seconds": 0.1}
        controller.handle(attempt.number, 1, Message("finished", attempt.config["steps"], metrics))


def test_importing_hpo_imports_nothing_heavy() -> None:
    heavy = {"torch", "ray", "optuna", "pandas", "pydantic", "sqlalchemy", "typer"}
    program = f"import hpo, sys; sys.exit(bool({heavy} & {{*sys.modules}}))"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert {"start", "resume", "load", "Study", "Unfinished"} <= {*dir(hpo)}
    with pytest.raises(AttributeError, match="module 'hpo' has no attribute 'strat'"):
        hpo.strat  # noqa: B018


def test_a_loaded_study_knows_what_the_reading_commands_know(here: Path) -> None:
    stage = Stage(url := f"sqlite:///{here}/hpo.db")
    study = hpo.load("played", storage=url)
    assert study.best is None
    controller = stage.controller()
    finish(controller, 5.0)
    finish(controller, 4.0)
    assert study.best == views.best_trials(stage.ledger, "played")[0]
    assert study.best["values"] == {"valid_ppl": 4.0}
    assert study.front == [study.best]
    assert study.trials["value.valid_ppl"].tolist() == [5.0, 4.0]
    assert study.status() == views.study_status(stage.ledger, "played")
    assert study.show(1) == views.trial_details(stage.ledger, "played", 1)
    assert yaml.safe_load(study.config(1))["optim"]["lr"] == study.best["params"]["optim.lr"]
    assert study.optuna.best_value == 4.0
    assert repr(study) == "<study played: 2 of 4 trials, best valid_ppl 4 (trial 1)>"
    assert study.report("page.html").read_text().startswith("<!doctype html>")
    assert study.export("table.csv").read_text().startswith('"number","state"')


def test_a_study_is_evaluated_and_compared_as_by_the_commands(
    here: Path, played: Callable[[Play], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_CACHE_DIR", str(here / "cache"))
    trained: list[str] = []

    def end_every_training(controller: Controller) -> None:
        trained.append(controller.config.study)
        while (attempt := controller.next()) is not None:
            valid = 5.0 + attempt.number
            metrics = {"valid_ppl": valid, "test_ppl": valid + 1, "train_seconds": 2.0}
            metrics |= {"tokens_per_second": 5e3, "peak_memory_bytes": 2.0**30}
            metrics |= {
                f"valid_ppl_depth_{d}": valid + d for d in attempt.config["evaluation"]["depths"]
            }
            controller.handle(
                attempt.number, 1, Message("finished", attempt.config["steps"], metrics)
            )

    played(to_the_end)
    study = hpo.start({**ONE_RANK, "objectives": [{"metric": "valid_ppl"}]})
    played(end_every_training)
    recipes = ["baseline-a", "best"]
    for given in (recipes, "baseline-a,best"):
        [row] = study.evaluate(seeds=2)
        assert row["valid_ppl"] == {"mean": 5.5, "sd": pytest.approx(0.5**0.5)}
        found = study.compare(given, seeds=2, against="best", output=["table.md"])
        assert [each["recipe"] for each in found["recipes"]] == recipes
        assert (found["against"], found["comparison"]) == ("best", "tiny.comparison")
        assert "baseline-a" in (here / "table.md").read_text()
    assert trained == ["tiny.evaluation", "tiny.comparison"], "the second time nothing is trained"
    assert hpo.load("tiny.evaluation").optuna.user_attrs["evaluation"] == [row]

    played(lambda controller: controller.abandon(OSError("the disk is gone")))
    with pytest.raises(hpo.Unfinished, match="the disk is gone"):
        study.compare(recipes, seeds=3)
    with pytest.raises(hpo.ConfigError, match="--recipes: bets: no recipe 'bets'"):
        study.compare(["bets"])
    for wrong in ("top", "seeds"):
        with pytest.raises(hpo.ConfigError, match=f"{wrong}: 0: must be at least 1"):
            study.evaluate(**{wrong: 0})


def test_of_several_objectives_there_is_a_front_and_no_best(here: Path) -> None:
    objectives = [{"metric": "valid_ppl"}, {"metric": "step_seconds"}]
    stage = Stage(url := f"sqlite:///{here}/hpo.db", objectives=objectives)
    finish(stage.controller())
    study = hpo.load("played", storage=url)
    assert [trial["trial"] for trial in study.front] == [0]
    with pytest.raises(hpo.ConfigError, match=r"study played: has several objectives; see \.front"):
        _ = study.best


def test_a_study_is_a_file_or_what_is_in_it(here: Path) -> None:
    text = {**copy.deepcopy(ONE_RANK), "study": "1e-4"}  # which YAML would read as a number
    (here / "study.yaml").write_text(yaml.safe_dump(text).replace("study: 1e-4", "study: '1e-4'"))
    from_file = load_study(here / "study.yaml", settings=["steps=40"], trials=3)
    for given in (text, StudyConfig.model_validate(text), "study.yaml", here / "study.yaml"):
        config, _ = _config(given, {"steps": 40}, None, 3)
        assert config == from_file
        assert (config.train["steps"], config.budget.trials) == (40, 3)


@pytest.mark.parametrize(
    ("study", "settings", "says"),
    [
        ({**TINY, "spaec": {}}, {}, "hpo.start: spaec: no such setting"),
        (TINY, {"optim.lrr": 1}, "optim.lrr: no such train setting; did you mean optim.lr"),
        (TINY, {"steps": Path()}, "hpo.start: steps: must be plain data, as in a file, not "),
        (
            {**TINY, "train": here},
            {},
            "hpo.start: the study: must be plain data, as in a file, not ",
        ),
        ("nowhere.yaml", {}, "nowhere.yaml: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    here: Path, study: Any, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(hpo.ConfigError, match=says) as raised:
        hpo.start(study, settings)
    assert "\n" not in str(raised.value)
    assert list(here.iterdir()) == []


def test_what_the_ledger_has_not_or_has_already_is_said(here: Path) -> None:
    Stage(f"sqlite:///{here}/hpo.db")
    with pytest.raises(hpo.LedgerError, match="nothing"):
        hpo.load("nothing")
    with pytest.raises(hpo.ConfigError, match="study played exists with 0 trials"):
        hpo.start(ONE_RANK, name="played")


def test_what_the_command_line_would_not_take_is_refused_too(here: Path) -> None:
    for wrong, says in (
        ({"metrics_port": 70000}, "--metrics-port 70000: no such port; give another"),
        ({"trials": 0}, "hpo.start: budget.trials: "),
    ):
        with pytest.raises(hpo.ConfigError, match=says):
            hpo.start(ONE_RANK, **wrong)
    assert list(here.iterdir()) == []


def test_another_thread_is_refused_at_once(here: Path) -> None:
    raised: list[Exception] = []

    def start() -> None:
        try:
            hpo.start(ONE_RANK)
        except hpo.ConfigError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert str(raised[0]).startswith("hpo.start: call it from the main thread")
    assert list(here.iterdir()) == []


def test_ctrl_c_comes_back_when_trials_have_checkpointed_and_the_study_goes_on(
    played: Callable[[Play], None],
) -> None:
    def interrupted(controller: Controller) -> None:
        attempt = controller.next()
        assert attempt is not None
        os.kill(os.getpid(), signal.SIGINT)
        while not controller.stopping:
            time.sleep(0.05)
        controller.handle(0, 1, Message("stopped", 10))  # type: ignore[call-arg]

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    played(interrupted)
    with pytest.raises(KeyboardInterrupt, match="study tiny is stopped; go on with: hpo resume"):
        hpo.start(ONE_RANK)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    study = hpo.load("tiny")
    assert study.status()["controller"] is None
    assert study.show(0)["attempts"][0]["reason"] == "stopped"

    played(lambda controller: [controller.handle(n, 2 - n, done(60)) for n in asked(controller)])
    study = hpo.resume("tiny")
    assert [trial.state for trial in study.optuna.trials] == [TrialState.COMPLETE] * 2
    assert study.best is not None


def asked(controller: Controller) -> Any:
    while (attempt := controller.next()) is not None:
        yield attempt.number


def done(step: int) -> Message:
    return Message("finished", step, {"valid_ppl": 5.0, "step_seconds": 0.1})


def test_a_second_ctrl_c_leaves_at_once_and_this_process_lives(
    played: Callable[[Play], None],
) -> None:
    def impatient(controller: Controller) -> None:
        controller.next()
        for _ in range(300):  # two at once may arrive as one
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    played(impatient)
    with pytest.raises(KeyboardInterrupt):
        hpo.start(ONE_RANK)
    assert hpo.load("tiny").status()["states"] == {"RUNNING": 1}
    assert hpo.load("tiny").status()["controller"] is None, "its lease was given back"


def test_a_study_that_cannot_reach_its_goal_raises_with_what_there_is(
    played: Callable[[Play], None],
) -> None:
    def failing(controller: Controller) -> None:
        while (attempt := controller.next()) is not None:
            controller.handle(attempt.number, 1, Message("error", detail="boom"))

    played(failing)
    with pytest.raises(hpo.Unfinished, match="study tiny: no trial completed") as raised:
        hpo.start(ONE_RANK)
    assert raised.value.study.trials["state"].tolist() == ["FAIL", "FAIL"]


def test_a_study_may_be_started_with_everything_that_the_command_takes(
    here: Path, played: Callable[[Play], None]
) -> None:
    played(to_the_end)
    study = hpo.start(
        ONE_RANK, {"steps": 40}, storage="sqlite:///o.db", name="o", trials=3, runs=here / "r"
    )
    assert (study.name, len(study.trials)) == ("o", 3)
    assert [found.name for found in Ledger.open("sqlite:///o.db").studies()] == ["o"]
    assert study.show(0)["metrics"].keys() == {40}
    assert (here / "r/o/log.txt").stat().st_size > 0


def test_what_libraries_print_does_not_reach_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = io.StringIO()
    monkeypatch.setattr(sys, "stdout", notebook)
    with Quiet():
        print("chatter")
    print("ours")
    assert notebook.getvalue() == "ours\n"


@pytest.mark.parametrize("name", ["start", "resume"])
def test_python_takes_what_the_command_takes(name: str) -> None:
    command = inspect.signature(getattr(running, name))
    assert {*inspect.signature(getattr(hpo, name)).parameters} == {*command.parameters}
