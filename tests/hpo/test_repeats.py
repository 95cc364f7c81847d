"""Repeats: what would be best is trained again under other seeds before it is."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState

from hpo.control.attempts import TrialAttempt
from hpo.control.controller import Controller
from hpo.control.messages import Message
from tests.hpo.stage import Stage, ppl


def train(controller: Controller, value: float) -> TrialAttempt:
    """Play one attempt that ends with `value`."""
    assignment = controller.next()
    assert isinstance(assignment, TrialAttempt)
    number, attempt = assignment.number, assignment.attempt.number
    controller.handle(number, attempt, Message("evaluated", 100, ppl(value + 1), first_step=0))
    controller.handle(number, attempt, Message("finished", 300, ppl(value)))
    return assignment


def test_a_trial_is_best_by_the_mean_of_its_trainings_under_other_seeds(url: str) -> None:
    stage = Stage(url, repeats=3)
    controller = stage.controller()
    trainings = [train(controller, value) for value in (5.0, 6.0, 7.0)]
    assert [t.number for t in trainings] == [0, 0, 0]
    assert [t.config["seed"] for t in trainings] == [0, 1, 2]
    assert len({t.config["output_dir"] for t in trainings}) == 3
    (trial,) = stage.trials
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 6.0)
    assert trial.user_attrs["repeats"] == 3
    assert trial.user_attrs["standard_errors"] == [pytest.approx((1 / 3) ** 0.5)]
    assert trial.intermediate_values == {100: 6.0, 300: 5.0}, "the curve is the first training's"


def test_a_trial_that_falls_behind_is_repeated_no_more(url: str) -> None:
    stage = Stage(url, repeats=3)
    controller = stage.controller()
    for value in (5.0, 5.0, 5.0):
        train(controller, value)
    assert train(controller, 6.0).number == 1, "worse than the best: once is enough"
    assert [train(controller, value).number for value in (4.0, 7.0)] == [2, 2]
    assert [trial.value for trial in stage.trials] == [5.0, 6.0, 5.5]
    assert train(controller, 5.2).number == 3


def test_a_kill_between_two_trainings_repeats_none_and_leaves_none_out(url: str) -> None:
    stage = Stage(url, repeats=3)
    dead = stage.controller()
    train(dead, 5.0)
    assert stage.trials[0].state is TrialState.RUNNING
    assert dead.next() is not None, "the second has begun"
    stage.lapse()
    heir = stage.controller()
    assert [train(heir, value).repeat for value in (6.0, 7.0)] == [1, 2]
    assert stage.trials[0].value == 6.0
    assert [r["valid_ppl"] for r in stage.ledger.results(stage.trials[0]._trial_id)] == [5, 6, 7]


def test_several_objectives_are_repeated_while_nothing_is_better_in_all(url: str) -> None:
    objectives = [{"metric": "valid_ppl"}, {"metric": "step_seconds"}]
    controller = Stage(url, repeats=2, objectives=objectives).controller()
    assert [train(controller, 5.0).number for _ in range(2)] == [0, 0]
    assert train(controller, 5.0).number == 1, "no better in any, so once is enough"
    assert [train(controller, 4.0).number for _ in range(2)] == [2, 2]


def test_a_repeat_that_diverges_ends_its_trial(url: str) -> None:
    stage = Stage(url, repeats=2)
    controller = stage.controller()
    train(controller, 5.0)
    assignment = controller.next()
    assert assignment is not None
    controller.handle(0, 2, Message("diverged", 50, first_step=0))
    (trial,) = stage.trials
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.PRUNED, "diverged")
