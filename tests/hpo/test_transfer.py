"""Points carried from an earlier study, or given by hand: chosen, checked, and tried once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from pydantic import TypeAdapter
from typer.testing import CliRunner

from hpo.cli import app
from hpo.search.points import WarmStart, fitted, point_by_hand, warm_points
from hpo.search.ranking import best_trials
from hpo.search.space import Dimension
from hpo.service.run import Ending
from hpo.study.config import StudyConfig
from storage import Ledger, Point
from storage.points import known_params
from tests.hpo.stage import STUDY, Stage, finish
from trainer.config.settings import ConfigError

pytestmark = pytest.mark.slow

SPACE: dict[str, Dimension] = TypeAdapter(dict[str, Dimension]).validate_python(
    {
        "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "model.dropout": {"type": "float", "low": 0.0, "high": 0.9, "step": 0.3},
        "model.layers": {"type": "int", "low": 2, "high": 12, "step": 2},
        "model.d_model": {"type": "int", "low": 16, "high": 512, "log": True},
        "layerdrop.policy": {"type": "categorical", "choices": ["none", "linear"]},
        "model.compile": {"type": "categorical", "choices": [True, False]},
    }
)


@given(st.integers(0, 2**32 - 1))
def test_what_a_trial_draws_fits_its_own_space_and_stays_as_it_is(seed: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    drawn = {path: each.plain(each.suggest(trial, path)) for path, each in SPACE.items()}
    assert fitted(SPACE, drawn) == (drawn, [])


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("optim.lr", 0.5, "optim.lr: 0.5 is outside the space: 0.0001 to 0.01"),
        ("optim.lr", -1.0, "optim.lr: -1.0 is outside"),
        ("optim.lr", float("nan"), "optim.lr: nan is outside"),
        ("optim.lr", "0.001", "optim.lr: '0.001' is outside"),
        ("optim.lr", True, "optim.lr: True is outside"),
        ("model.dropout", 0.4, "outside the space: 0 to 0.9 in steps of 0.3"),
        ("model.layers", 3, "outside the space: 2 to 12 in steps of 2"),
        ("model.d_model", 64.5, "model.d_model: 64.5 is outside"),
        ("layerdrop.policy", "pld", "outside the space: one of none, linear"),
        ("optim.lrr", 0.001, "optim.lrr: is not searched; did you mean optim.lr?"),
    ],
)
def test_a_value_that_no_trial_could_have_is_named(path: str, value: Any, reason: str) -> None:
    inside, (said,) = fitted(SPACE, {path: value, "model.layers": 4} | {path: value})
    assert path not in inside
    assert reason in said


def test_a_value_of_another_type_becomes_what_a_trial_would_have() -> None:
    inside, _ = fitted(SPACE, {"model.layers": 4.0, "model.dropout": 0, "model.compile": 1})
    assert [(value, type(value)) for value in inside.values()] == [
        (4, int), (0.0, float), (True, bool),
    ]  # fmt: skip


def test_a_value_that_the_point_s_other_values_do_not_call_for_is_named() -> None:
    p_init = {"type": "float", "low": 0.0, "high": 0.5, "when": {"layerdrop.policy": "linear"}}
    made = TypeAdapter(dict[str, Dimension]).validate_python({"layerdrop.p_init": p_init})
    given_values = {"layerdrop.p_init": 0.2, "layerdrop.policy": "none"}
    inside, reasons = fitted({**SPACE, **made}, given_values)
    assert inside == {"layerdrop.policy": "none"}
    assert reasons == ["layerdrop.p_init: is not searched when layerdrop.policy is 'none'"]
    inside, reasons = fitted({**SPACE, **made}, given_values | {"layerdrop.policy": "linear"})
    assert (len(inside), reasons) == (2, [])


def test_a_point_by_hand_is_yaml_and_refused_in_one_line() -> None:
    assert point_by_hand(SPACE, ["optim.lr=1e-3"], "mine") == Point(
        {"optim.lr": 0.001}, {"by": "hand"}
    )
    with pytest.raises(ConfigError, match=r"study mine: optim.lr: 1.0 is outside the space: 0.00"):
        point_by_hand(SPACE, ["model.layers=4", "optim.lr=1.0"], "mine")
    with pytest.raises(ConfigError, match="given twice"):
        point_by_hand(SPACE, ["optim.lr=1e-3", "optim.lr=1e-4"], "mine")


def completed(directions: list[str], values: list[tuple[float, ...]]) -> optuna.Study:
    study = optuna.create_study(directions=directions)
    for found in values:
        study.add_trial(create_trial(values=list(found)))
    return study


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12),
    st.integers(1, 12),
)
def test_the_best_of_several_objectives_are_whole_pareto_fronts_then_part_of_the_next(
    values: list[tuple[int, int]], top: int
) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    left, expected = dict(enumerate(values)), []  # smaller first, larger second
    while left:
        front = [
            n for n, (a, b) in left.items()
            if not any(c <= a and d >= b and (c, d) != (a, b) for c, d in left.values())
        ]  # fmt: skip
        expected += front
        left = {n: value for n, value in left.items() if n not in front}
    study = completed(["minimize", "maximize"], values)
    assert [trial.number for trial in best_trials(study, top)] == expected[:top]


def test_the_best_are_complete_and_feasible() -> None:
    study = completed(["maximize"], [(1.0,), (9.0,), (5.0,)])
    study.add_trial(create_trial(value=99.0, system_attrs={"constraints": [0.5]}))
    study.add_trial(create_trial(value=7.0, system_attrs={"constraints": [-0.5, 0.0]}))
    study.add_trial(create_trial(value=98.0, state=TrialState.PRUNED))
    study.ask()
    assert [trial.value for trial in best_trials(study, 3)] == [9.0, 7.0, 5.0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """An earlier study with five trials, in a ledger of its own; the fourth was the best."""
    stage = Stage(
        f"sqlite:///{tmp_path_factory.mktemp('small')}/small.db",
        budget={"trials": 5},
        space={**STUDY["space"], "model.dropout": {"type": "float", "low": 0.0, "high": 0.5}},
    )
    controller = stage.controller()
    for value in (5.0, 4.0, 3.0, 1.0, 2.0):
        finish(controller, value)
    return stage


class Warmed(Stage):
    """A study that was given points when it was made."""

    def __init__(self, url: str, config: StudyConfig, points: list[Point]) -> None:
        self.config = config
        self.ledger = Ledger.open(url, create=True)
        directions = [objective.optuna_direction for objective in config.objectives]
        document, budget = config.to_document(), config.budget.trials
        self.record = self.ledger.create_study(
            config.study, directions, ["valid_ppl"], document, budget, (), points
        )


WARM = {"study": "played", "top": 3}


def big_config(small: Stage, **changes: Any) -> StudyConfig:
    warm_start = {**WARM, "storage": small.ledger.url}
    document = {**STUDY, "study": "big", "budget": {"trials": 6}, "warm_start": warm_start}
    return StudyConfig.model_validate({**document, **changes})


def test_a_warm_start_takes_what_the_space_has_and_names_the_rest(small: Stage) -> None:
    trials = small.trials
    lr = sorted(trials[n].params["optim.lr"] for n in (2, 3, 4))
    narrow = {"optim.lr": {"type": "float", "low": lr[0] * 0.99, "high": lr[1] * 1.01}}
    config = big_config(small, space=narrow)
    assert config.warm_start is not None
    points, left_out = warm_points(config.warm_start, config.space, "unused", "big.yaml")
    outside = next(n for n in (3, 4, 2) if trials[n].params["optim.lr"] == lr[2])
    inside = [n for n in (3, 4, 2) if n != outside]
    assert points == [
        Point({"optim.lr": trials[n].params["optim.lr"]}, {"study": "played", "trial": n})
        for n in inside
    ], "the best first, and none of a point that has nothing left"
    assert sum("layerdrop.policy: is not searched" in line for line in left_out) == 1
    assert sum("model.dropout: is not searched" in line for line in left_out) == 1
    assert sum("is outside the space" in line for line in left_out) == 1


def test_points_that_are_the_same_in_the_new_space_come_once(small: Stage) -> None:
    space = {"layerdrop.policy": {"type": "categorical", "choices": ["static", "linear"]}}
    config = big_config(small, space=space)
    points, _ = warm_points(WarmStart(**WARM, storage=small.ledger.url), config.space, "", "x")
    chosen = [small.trials[n].params["layerdrop.policy"] for n in (3, 4, 2)]
    assert [point.params["layerdrop.policy"] for point in points] == list(dict.fromkeys(chosen))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"study": "playd"}, "no study called playd; did you mean played?"),
        ({"storage": "sqlite:////no/such.db"}, "/no/such.db: no such database"),
    ],
)
def test_an_earlier_study_that_is_not_there_is_refused(
    small: Stage, changes: dict[str, str], said: str
) -> None:
    warm = WarmStart(**{**WARM, "storage": small.ledger.url, **changes})
    with pytest.raises(ConfigError) as refused:
        warm_points(warm, SPACE, "sqlite:///unused.db", "big.yaml")
    assert str(refused.value).startswith("big.yaml: warm_start")
    assert said in str(refused.value)


def test_an_earlier_study_without_a_result_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    Stage(url)
    with pytest.raises(ConfigError, match="played has no feasible trial that is complete"):
        warm_points(WarmStart(**WARM), SPACE, url, "big.yaml")


def test_the_ledger_keeps_no_address_of_the_earlier_one(small: Stage) -> None:
    config = big_config(small, warm_start={**WARM, "storage": "postgresql://me:hunter2@host/db"})
    assert "hunter2" not in config.to_document()
    assert "host" not in config.to_document()


# A resume that is killed when it has taken a point off the queue, or has committed that.
RESUMED = """
import os, sys
from pathlib import Path
from hpo.control import controller as module
from hpo.control.controller import Controller
from hpo.study.load import restore_study
from storage import Ledger
ledger = Ledger.open(sys.argv[1])
record = ledger.study("big")
lease = ledger.acquire(record)
controller = Controller(ledger, record, restore_study(record.document, "big"), lease, "/runs")
if sys.argv[2] == "inside the transaction":
    module.suggest = lambda space, trial: os.kill(os.getpid(), 9)
controller.next()
os.kill(os.getpid(), 9)
"""


def test_a_warm_start_across_two_databases_is_enqueued_once_though_twice_killed_and_resumed(
    small: Stage, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/big.db"
    config = big_config(small)
    assert config.warm_start is not None
    points, _ = warm_points(config.warm_start, config.space, url, "big.yaml")
    big = Warmed(url, config, points)
    finish(big.controller(), 9.0)
    for line in ("inside the transaction", "after it"):
        big.lapse()
        killed = subprocess.run([sys.executable, "-c", RESUMED, url, line], check=False)
        assert killed.returncode == -9
    big.lapse()
    last = big.controller()
    for n in range(5):
        finish(last, 8.0 - n)
    assert last.next() is None
    best = [small.trials[n].params for n in (3, 4, 2)]
    tried = big.trials
    assert len(tried) == 6, "the budget, and nothing waits"
    assert {trial.state for trial in tried} == {TrialState.COMPLETE}
    assert [trial.params["optim.lr"] for trial in tried[:3]] == [p["optim.lr"] for p in best]
    assert [trial.user_attrs.get("origin") for trial in tried] == [
        *({"study": "played", "trial": n} for n in (3, 4, 2)), None, None, None,
    ]  # fmt: skip
    assert len({trial.params["optim.lr"] for trial in tried}) == 6


def hpo(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, ConfigError):
        return str(result.exception)
    assert result.exit_code == 0, result
    return result.stdout


def test_enqueue_says_when_the_point_is_tried_and_status_counts_it_apart(tmp_path: Path) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db", budget={"trials": 2})
    storage = ("--storage", stage.ledger.url)
    said = hpo("enqueue", "played", "optim.lr=1e-3", *storage)
    assert "trial 0 of played: optim.lr=0.001" in said
    assert "hpo resume played" in said
    controller = stage.controller()
    assert "resume" not in hpo("enqueue", "played", "layerdrop.policy=linear", *storage)
    said = hpo("enqueue", "played", "optim.lr=2e-3", "layerdrop.policy=static", *storage)
    assert "the budget of 2 trials is taken: hpo resume played --trials 3" in said
    finish(controller)
    assert "played: 1/2 trials, 1 complete, 2 waiting" in hpo("status", "played", *storage)
    assert "hpo enqueue" in hpo("show", "played", "2", *storage)
    finish(controller)
    assert controller.next() is None
    first, second, third = stage.trials
    assert first.params["optim.lr"] == 0.001
    assert second.params["layerdrop.policy"] == "linear"
    assert known_params(third) == {"optim.lr": 0.002, "layerdrop.policy": "static"}
    assert third.state is TrialState.WAITING
    assert "optim.lr: 5 is outside" in hpo("enqueue", "played", "optim.lr=5", *storage)
    assert len(stage.trials) == 3


def test_a_whole_point_that_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    heads = {"type": "categorical", "choices": [2, 4]}
    width = {"type": "int", "low": 6, "high": 8}
    stage = Stage(
        f"sqlite:///{tmp_path}/hpo.db", space={"model.heads": heads, "model.d_model": width}
    )
    storage = ("--storage", stage.ledger.url)
    said = hpo("enqueue", "played", "model.heads=4", "model.d_model=6", *storage)
    assert "4 does not divide d_model 6" in said
    assert not stage.trials
    hpo("enqueue", "played", "model.heads=4", "model.d_model=8", *storage)
    assert len(stage.trials) == 1


def test_start_records_a_study_with_its_points_and_says_what_it_left_out(
    small: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "hpo.service.run.run_study", lambda *_, **__: Ending(0, "played by the test")
    )
    document = {**STUDY, "study": "big", "train": {"steps": 4, "eval_every": 2}}
    warm = {**WARM, "storage": small.ledger.url}
    file = tmp_path / "big.yaml"
    file.write_text(yaml.safe_dump({**document, "warm_start": {**warm, "study": "playd"}}))
    assert "did you mean played?" in hpo("start", str(file))
    assert not Path("hpo.db").exists(), "refused before anything is written"
    file.write_text(yaml.safe_dump({**document, "warm_start": warm}))
    said = hpo("start", str(file))
    assert "warm start without model.dropout: is not searched" in said
    assert "warm start: 3 points from study played come first" in said
    assert "big: 0/4 trials, 3 waiting" in hpo("status", "big")
    assert " lr " in hpo("trials", "big")
    assert "from: trial 3 of played" in hpo("show", "big", "0")
