"""Pruning on a real ledger: by another metric, of several objectives, by tokens, after restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.control.pruning import make_pruner
from hpo.study.config import StudyConfig
from tests.hpo.stage import STUDY, Stage

BOTH = [{"metric": "valid_ppl"}, {"metric": "step_seconds"}]
BATCH = {"data.batch_size": {"type": "categorical", "choices": [8, 16]}}
KINDS: list[dict[str, Any]] = [
    {"name": "asha", "min_steps": 100, "reduction_factor": 2},
    {"name": "hyperband", "min_steps": 100, "reduction_factor": 2},
    {"name": "median", "startup_trials": 1},
    {"name": "percentile", "percentile": 50.0, "startup_trials": 1},
    {"name": "threshold", "upper": 30.0},
    {"name": "wilcoxon", "startup_evaluations": 2, "p_threshold": 0.3},
    {"name": "patient", "patience": 0, "pruner": {"name": "median", "startup_trials": 1}},
]


def metrics(value: float) -> dict[str, float]:
    return {"valid_ppl": value, "step_seconds": 0.1, "tokens_per_second": 1e3 / value}


def train(controller: Controller, curve: dict[int, float]) -> int | None:
    """A trial with this curve of perplexity; where it was pruned."""
    assignment = controller.next()
    assert assignment is not None
    number, attempt = assignment.number, assignment.attempt.number
    for step, value in curve.items():
        if not controller.handle(number, attempt, Message("evaluated", step, metrics(value))):
            return step
    last = curve[max(curve)]
    controller.handle(number, attempt, Message("finished", 300, metrics(last)))
    return None


GOOD = {100: 20.0, 200: 10.0, 250: 9.0}
BAD = {100: 35.0, 200: 36.0, 250: 37.0}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["name"])
def test_several_objectives_are_pruned_by_a_named_metric_as_optuna_prunes_one(
    kind: dict[str, Any], url: str
) -> None:
    named = {**kind, "metric": "valid_ppl"}
    if "pruner" in kind:
        named = {**kind, "pruner": {**kind["pruner"], "metric": "valid_ppl"}}
    curves = (GOOD, BAD, {**GOOD, 200: 10.5}, BAD, {100: 19.0, 200: 18.0, 250: 17.0})
    stage = Stage(url, budget={"trials": 6}, pruner=named, objectives=BOTH)
    controller = stage.controller()
    ends = [train(controller, curve) for curve in curves]
    assert ends == by_optuna(make_pruner(stage.config), curves)
    assert any(ends)


def by_optuna(
    pruner: optuna.pruners.BasePruner, curves: Sequence[dict[int, float]]
) -> list[int | None]:
    """Where Optuna itself prunes trials with these curves, in a study of the same name."""
    study = optuna.create_study(study_name="played", pruner=pruner)
    ends: list[int | None] = []
    for curve in curves:
        trial, end = study.ask(), None
        for step, value in curve.items():
            trial.report(value, step)
            if trial.should_prune():
                end = step
                break
        if end is None:
            trial.report(curve[max(curve)], 300)
        ends.append(end)
        study.tell(trial, None if end else curve[max(curve)],
                   state=TrialState.PRUNED if end else TrialState.COMPLETE)  # fmt: skip
    return ends


def test_another_metric_than_the_objective_leaves_the_objectives_curve_alone(url: str) -> None:
    pruner = {"name": "median", "metric": "tokens_per_second", "direction": "maximize",
              "startup_trials": 1}  # fmt: skip
    stage = Stage(url, pruner=pruner)
    controller = stage.controller()
    assert train(controller, BAD) is None
    assert train(controller, GOOD) is None, "more tokens per second"
    assert train(controller, {100: 40.0}) == 100
    pruned = stage.trials[2]
    assert pruned.state is TrialState.PRUNED
    assert pruned.intermediate_values == {100: 40.0}, "perplexity, for tpe and the dashboard"


def test_trials_are_compared_at_equal_tokens(url: str) -> None:
    """16 x 64 tokens a step against 8 x 64: its 200th step is to be held against the 100th."""
    pruner = {"name": "median", "unit": "tokens", "min_tokens": 1, "startup_trials": 1}
    stage = Stage(url, pruner=pruner, space=BATCH, sampler={"name": "grid"})
    for size in (16, 8, 8):
        optuna.load_study(study_name="played", storage=stage.ledger.storage).enqueue_trial(
            {"data.batch_size": size}
        )
    assert train(stage.controller(), {100: 20.0, 200: 10.0}) is None
    stage.lapse()
    controller = stage.controller()  # which has seen nothing of the first
    assert train(controller, {100: 30.0, 200: 19.0}) is None, "20.0 at as many tokens"
    assert train(controller, {200: 21.0}) == 200


def test_a_kill_between_evaluations_changes_no_decision(url: str) -> None:
    pruner = {"name": "asha", "metric": "valid_ppl", "min_steps": 100, "reduction_factor": 2}
    stage = Stage(url, pruner=pruner, objectives=BOTH)
    assert train(stage.controller(), GOOD) is None
    stage.lapse()
    controller = stage.controller()
    first = controller.next()
    assert first is not None
    assert controller.handle(first.number, 1, Message("evaluated", 100, metrics(19.0)))
    stage.lapse()
    again = stage.controller()
    second = again.next()
    assert second is not None
    assert (second.number, second.attempt.number) == (first.number, 2)
    assert not again.handle(second.number, 2, Message("evaluated", 200, metrics(11.0))), (
        "10.0 leads"
    )


def test_hyperbands_brackets_are_there_before_the_first_evaluation(url: str) -> None:
    """Optuna's tpe learns within a bracket: before they are built it would learn from all."""
    pruner = {"name": "hyperband", "min_steps": 100, "reduction_factor": 3}
    config = StudyConfig.model_validate({**STUDY, "pruner": pruner})
    built = make_pruner(config)
    assert isinstance(built, optuna.pruners.HyperbandPruner)
    study = optuna.create_study(study_name="played", pruner=built)
    trials = [optuna.trial.create_trial(value=1.0) for _ in range(8)]
    study.add_trials(trials)
    assert {built._get_bracket_id(study, trial) for trial in study.trials} == {0, 1}
