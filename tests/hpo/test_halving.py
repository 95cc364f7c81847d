"""Parked halving: who is parked, who goes on, and that a killed controller loses none of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.search.halving import Halving
from storage import Reason
from tests.hpo.stage import Stage, ppl
from trainer.config.train import TrainConfig

CURVES = st.lists(
    st.dictionaries(st.integers(1, 100), st.floats(0, 1e3), max_size=8), min_size=1, max_size=12
).map(lambda curves: dict(enumerate(curves)))


def test_a_rung_is_reached_by_the_first_value_at_or_past_it() -> None:
    halving = Halving(first=10, reduction_factor=3)
    assert halving.rung_values({5: 9.0}) == []
    assert halving.rung_values({5: 9.0, 10: 8.0, 20: 7.0}) == [8.0]
    assert halving.rung_values({12: 8.0, 29: 7.0, 31: 6.0}) == [8.0, 6.0]
    assert halving.rung_values({95: 5.0}) == [5.0, 5.0, 5.0]


def test_the_best_third_of_a_rung_goes_on_whenever_it_comes_to_be_that() -> None:
    halving = Halving(first=10, reduction_factor=3)
    curves = {0: {10: 5.0}, 1: {10: 4.0}}
    assert halving.promotable([0, 1], curves) is None
    assert not halving.goes_on(1, 10, curves)
    curves[2] = {10: 6.0}
    assert halving.promotable([0, 1, 2], curves) == 1
    curves[1][20] = 3.5
    assert halving.goes_on(1, 20, curves), "it stands at no rung"
    assert halving.promotable([0, 2], curves) is None, "one of three has gone on already"
    assert halving.furthest([0, 2], curves) == 0


@given(CURVES, st.integers(1, 20), st.integers(2, 4))
def test_never_more_than_its_share_of_a_rung_may_pass(
    curves: dict[int, dict[int, float]], min_steps: int, factor: int
) -> None:
    halving = Halving(min_steps, factor)
    chosen = halving.promotable(list(curves), curves)
    values = {trial: halving.rung_values(curve) for trial, curve in curves.items()}

    def may_pass(trial: int) -> bool:  # the definition: fewer are better than its share holds
        rung, own = len(values[trial]), values[trial][-1:]
        there = {t: v[rung - 1] for t, v in values.items() if len(v) >= rung > 0}
        better = [t for t, value in there.items() if ([value], t) < (own, trial)]
        return rung > 0 and len(better) < len(there) // factor

    assert (chosen is not None) == any(map(may_pass, curves))
    assert chosen is None or may_pass(chosen)


RUNGS = {"name": "parked_halving", "min_steps": 100, "reduction_factor": 3}


def drive(controller: Controller, quality: dict[int, float]) -> list[tuple[int, int, int]]:
    """Run attempts until nothing is left: (trial, first step, last step) of each."""
    trained = []
    while (assignment := controller.next()) is not None:
        step = first = assignment.reported_step
        goes_on = True
        while goes_on:
            step += 100
            kind: Any = "finished" if step == 900 else "evaluated"
            value = ppl(quality[assignment.number] + 9.0 - step / 100)
            message = Message(kind, step, value, first_step=first)
            goes_on = controller.handle(assignment.number, assignment.attempt.number, message)
        trained.append((assignment.number, first, step))
    return trained


def stage_of_nine(url: str, **changes: Any) -> Stage:
    return Stage(
        url,
        budget={"trials": 9},
        train=TrainConfig(steps=900).model_dump(mode="json"),
        **{"pruner": RUNGS, **changes},
    )


QUALITY = {number: float(value) for number, value in enumerate([5, 3, 8, 1, 7, 6, 2, 4, 9])}


def test_nine_trials_of_three_rungs_train_no_step_twice_and_one_to_the_end(url: str) -> None:
    stage = stage_of_nine(url)
    controller = stage.controller()
    trained = drive(controller, QUALITY)
    assert controller.look_for_end()
    steps = [range(first, last) for _, first, last in trained]
    for number in range(9):
        of_trial = [r for (n, *_), r in zip(trained, steps, strict=True) if n == number]
        assert of_trial == sorted(of_trial, key=lambda r: r.start)
        assert [r.stop for r in of_trial[:-1]] == [r.start for r in of_trial[1:]]
    states = [trial.state for trial in stage.trials]
    assert states.count(TrialState.COMPLETE) == 1
    assert stage.trials[3].state is TrialState.COMPLETE, "the best of all"
    assert all(t.user_attrs["reason"] == "pruned" for t in stage.trials if t.number != 3)
    assert all(trial.user_attrs["device_seconds"] >= 0 for trial in stage.trials)


def test_a_trial_that_is_trained_again_from_the_beginning_is_not_judged_again_on_the_way(
    url: str,
) -> None:
    """One whose checkpoint was lost, or whose training function writes none."""
    stage = Stage(url, budget={"trials": 2}, pruner=RUNGS)
    controller = stage.controller()
    attempts = 0
    while (assignment := controller.next()) is not None:
        attempts += 1
        assert attempts < 12, "it comes to an end"
        for step in (100, 200, 300):
            kind: Any = "finished" if step == 300 else "evaluated"
            message = Message(kind, step, ppl(9.0 + assignment.number), first_step=0)
            if not controller.handle(assignment.number, assignment.attempt.number, message):
                break
    assert TrialState.COMPLETE in [trial.state for trial in stage.trials]


def test_it_trains_fewer_steps_than_asha_that_stops(tmp_path: Path) -> None:
    def steps(folder: str, pruner: dict[str, Any]) -> int:
        (tmp_path / folder).mkdir()
        stage = stage_of_nine(f"sqlite:///{tmp_path}/{folder}/hpo.db", pruner=pruner)
        return sum(last - first for _, first, last in drive(stage.controller(), QUALITY))

    assert steps("parked", RUNGS) < steps("stopped", {**RUNGS, "name": "asha"})


def test_a_controller_killed_while_trials_are_parked_loses_none_of_them(url: str) -> None:
    stage = stage_of_nine(url)
    dead = stage.controller()
    for _ in range(4):
        assignment = dead.next()
        assert assignment is not None
        step = assignment.reported_step + 100
        message = Message("evaluated", step, ppl(QUALITY[assignment.number]), first_step=step - 100)
        dead.handle(assignment.number, assignment.attempt.number, message)
    parked = [t.number for t in stage.trials if t.state is TrialState.RUNNING]
    stage.lapse()
    heir = stage.controller()
    trained = drive(heir, QUALITY)
    assert {number for number, first, _ in trained if first == 0} == set(range(9)) - set(parked)
    assert all(trial.state.is_finished() for trial in stage.trials)
    for trial in stage.trials:
        attempts = stage.ledger.trial_attempts(trial._trial_id)
        assert [a.first_step for a in attempts] == [0, *(a.last_step for a in attempts[:-1])]
    reasons = [a.reason for a in stage.ledger.trial_attempts(stage.trials[0]._trial_id)]
    assert reasons[0] is Reason.PARKED


def test_several_objectives_are_halved_by_the_metric_that_is_named(url: str) -> None:
    objectives = [{"metric": "valid_ppl"}, {"metric": "step_seconds"}]
    stage = stage_of_nine(url, pruner={**RUNGS, "metric": "valid_ppl"}, objectives=objectives)
    trained = drive(stage.controller(), QUALITY)
    assert [t.number for t in stage.trials if t.state is TrialState.COMPLETE] == [3]
    assert sum(last - first for _, first, last in trained) < 9 * 900 / 2


def test_a_study_too_small_for_its_rungs_still_carries_one_trial_through(url: str) -> None:
    stage = stage_of_nine(url)
    stage.ledger.acquire(stage.record, trials=2)
    stage.lapse()
    controller = Controller(
        stage.ledger,
        stage.ledger.study("played"),
        stage.config,
        stage.ledger.acquire(stage.record),
        "/runs",
    )
    drive(controller, QUALITY)
    assert [trial.state.name for trial in stage.trials] == ["PRUNED", "COMPLETE"]


def test_a_stopped_study_keeps_its_parked_trials_for_the_resume(url: str) -> None:
    stage = stage_of_nine(url)
    controller = stage.controller()
    assignment = controller.next()
    assert assignment is not None
    controller.handle(0, 1, Message("evaluated", 100, ppl(5.0), first_step=0))
    controller.stopping = True
    assert controller.next() is None
    assert controller.look_for_end()
    assert stage.trials[0].state is TrialState.RUNNING


def test_parked_trials_are_kept_when_trials_fail_though_the_budget_is_spent(url: str) -> None:
    stage = stage_of_nine(url, failures={"max_failures": 2})
    controller = stage.controller()
    for number in range(9):
        assignment = controller.next()
        assert assignment is not None
        if assignment.number != number:  # one that was promoted
            break
        controller.handle(number, 1, Message("evaluated", 100, ppl(QUALITY[number]), first_step=0))
    attempts = 0
    while assignment is not None:
        number, attempt = assignment.number, assignment.attempt.number
        controller.handle(number, attempt, Message("error", detail="disk full"))
        assignment = controller.next()
        attempts += 1
    assert attempts == 2, "max_failures"
    assert controller.look_for_end()
    states = [trial.state for trial in stage.trials]
    assert states.count(TrialState.FAIL) == 2
    assert states.count(TrialState.RUNNING) == len(states) - 2, "the others wait for a resume"


def test_a_stop_that_comes_in_the_middle_prunes_no_parked_trial(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of_nine(url)
    controller = stage.controller()
    for number in (0, 1):
        assert controller.next() is not None
        controller.handle(number, 1, Message("evaluated", 100, ppl(5.0 + number), first_step=0))
    pruning = controller._parking._pruning
    curves = pruning.curves

    def stopped_meanwhile() -> Any:
        controller.stopping = True
        return curves()

    monkeypatch.setattr(pruning, "curves", stopped_meanwhile)
    assert controller.next() is None
    assert [trial.state for trial in stage.trials] == [TrialState.RUNNING] * 2
