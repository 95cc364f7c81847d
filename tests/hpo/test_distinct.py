"""No point twice: what small spaces come to, whichever sampler proposes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from pydantic import TypeAdapter

from hpo.search.pruners import NoPruner
from hpo.search.samplers.at_rungs import make_shown_rungs
from hpo.search.samplers.config import SamplerConfig
from hpo.search.samplers.rebuilt import SpaceExhausted
from hpo.search.space import Dimension, suggest
from storage import Point
from tests.hpo.stage import Stage, finish

pytestmark = pytest.mark.slow

CONFIG: TypeAdapter[Any] = TypeAdapter(SamplerConfig)
SPACE: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Dimension])

LAYERS = {"type": "int", "low": 2, "high": 4}
DROPOUT = {"type": "float", "low": 0.1, "high": 0.3, "step": 0.1}
POLICY = {"type": "categorical", "choices": ["none", "static"]}
NUMBERS = {"model.layers": LAYERS, "model.dropout": DROPOUT}
CONDITIONAL = {
    "layerdrop.policy": POLICY,
    "model.layers": LAYERS,
    "layerdrop.p_init": {**DROPOUT, "when": {"layerdrop.policy": "static"}},
}
SAMPLERS = ["random", "tpe", "nsga2", "qmc", "cmaes", "gp", "botorch"]
MODELS = ("tpe", "gp", "botorch", "ax")


def sampler(name: str, space: dict[str, Any], seed: int = 0) -> BaseSampler:
    early = {"startup_trials": 3} if name in MODELS else {}
    return make_shown_rungs(
        CONFIG.validate_python({"name": name, "seed": seed, **early}),
        SPACE.validate_python(space),
        NoPruner(name="none"),
    )


def ask(study: optuna.Study, space: dict[str, Any]) -> dict[str, Any]:
    """Ask for a trial and end it: the lowest corner is the best, so that models go back to it."""
    trial = study.ask()
    params = suggest(SPACE.validate_python(space), trial)
    study.tell(trial, sum(value for value in params.values() if not isinstance(value, str)))
    return params


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("gp", "botorch")))
        for name in SAMPLERS
    ],
)
def test_every_point_of_a_small_space_is_trained_once_and_then_the_study_is_over(
    tmp_path: Path, name: str
) -> None:
    early = {"startup_trials": 3} if name in MODELS else {}
    stage = Stage(
        f"sqlite:///{tmp_path}/hpo.db",
        space=NUMBERS,
        sampler={"name": name, **early},
        budget={"trials": 30},
    )
    controller = stage.controller()
    for number in range(9):
        assert finish(controller, value=float(number)) == number
    assert controller.next() is None
    assert controller.look_for_end()
    assert controller.gave_up == "every point of the space was tried"
    assert len({tuple(trial.params.values()) for trial in stage.trials}) == 9
    assert stage.ledger.study("played").reserved_trials == 9


@pytest.mark.parametrize("space", [NUMBERS, CONDITIONAL], ids=["numbers", "conditional"])
@pytest.mark.parametrize("name", ["random", "tpe", pytest.param("ax", marks=pytest.mark.slow)])
def test_a_restart_before_every_trial_changes_no_replacement(
    name: str, space: dict[str, Any]
) -> None:
    points = 9 if space is NUMBERS else 3 + 9
    for seed in range(1 if name == "ax" else 3):
        whole = optuna.create_study(sampler=sampler(name, space, seed))
        uninterrupted = [ask(whole, space) for _ in range(points)]
        storage = optuna.storages.InMemoryStorage()
        resumed = []
        for _ in range(points):
            study = optuna.create_study(
                study_name="s",
                storage=storage,
                sampler=sampler(name, space, seed),
                load_if_exists=True,
            )
            resumed.append(ask(study, space))
        assert resumed == uninterrupted
        assert len({tuple(sorted(params.items())) for params in resumed}) == points
        with pytest.raises(SpaceExhausted):
            ask(whole, space)


def test_a_copy_gives_way_to_the_nearest_point_that_is_new() -> None:
    space = {"model.layers": {"type": "int", "low": 1, "high": 9}, "layerdrop.policy": POLICY}

    class Stubborn(optuna.samplers.RandomSampler):
        def sample_independent(self, study: Any, trial: Any, name: str, *space: Any) -> Any:
            return 5 if name == "model.layers" else "none"

    study = optuna.create_study(sampler=sampler("random", space))
    study.sampler._other = Stubborn()  # type: ignore[attr-defined]
    layers = [ask(study, space)["model.layers"] for _ in range(7)]
    assert [abs(n - 5) for n in layers] == [0, 1, 1, 2, 2, 3, 3]


def test_points_by_hand_may_be_copies_and_what_they_lack_makes_them_new(tmp_path: Path) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db", space=NUMBERS, budget={"trials": 30})
    controller = stage.controller()
    for _ in range(2):
        finish(controller)
    whole = dict(stage.trials[0].params)
    for params in (whole, {"model.layers": 3}, {"model.layers": 3}, {"model.layers": 3}):
        stage.ledger.enqueue(stage.record, [Point(params, {})])
    for _ in range(4):
        finish(controller)
    assert stage.trials[2].params == whole
    assert len({tuple(trial.params.values()) for trial in stage.trials}) == 5


def test_a_space_without_end_is_never_over_and_has_no_copies() -> None:
    space = {"optim.lr": {"type": "float", "low": 0.1, "high": 0.2}}

    class Stubborn(optuna.samplers.RandomSampler):
        def sample_independent(self, *asked: Any) -> Any:
            return 0.1

    study = optuna.create_study(sampler=sampler("random", space))
    study.sampler._other = Stubborn()  # type: ignore[attr-defined]
    assert len({ask(study, space)["optim.lr"] for _ in range(5)}) == 5


def test_a_trial_that_runs_or_was_pruned_is_not_proposed_again() -> None:
    study = optuna.create_study(sampler=sampler("tpe", NUMBERS))
    space = SPACE.validate_python(NUMBERS)
    running = suggest(space, study.ask())
    pruned = study.ask()
    params = suggest(space, pruned)
    study.tell(pruned, state=TrialState.PRUNED)
    later = [ask(study, NUMBERS) for _ in range(7)]
    assert running not in later
    assert params not in later


def test_steps_give_the_decimal_numbers_that_a_person_would_write() -> None:
    space = {"x": {"type": "float", "low": -0.3, "high": 0.3, "step": 0.1}}
    for name in ("random", "tpe", "qmc"):
        study = optuna.create_study(sampler=sampler(name, space))
        drawn = sorted(ask(study, space)["x"] for _ in range(7))
        assert repr(drawn) == "[-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3]"
        assert sorted(trial.params["x"] for trial in study.trials) == drawn
