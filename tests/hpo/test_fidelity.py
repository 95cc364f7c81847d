"""What samplers are shown of a study whose trials stop at rungs."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from hpo.search.halving import Halving
from hpo.search.pruners import Asha, Hyperband, NoPruner, ParkedHalving, PrunerConfig
from hpo.search.samplers.at_rungs import RungView, at_rungs, rungs_of
from storage import Reason

HALVING = Halving(first=10, reduction_factor=2)  # rungs at 10, 20, 40
PARKED = ParkedHalving(name="parked_halving", min_steps=10, reduction_factor=2)
ASHA = Asha(name="asha", min_steps=10, reduction_factor=2)
SPACE = {"x": IntDistribution(0, 99)}


def study_of(*curves: dict[int, float], ends: dict[int, TrialState] | None = None) -> optuna.Study:
    """A study with a trial a curve; those that `ends` does not name are parked: RUNNING."""
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    for number, curve in enumerate(curves):
        trial = study.ask(SPACE)
        for step, value in curve.items():
            trial.report(value, step)
        state = (ends or {}).get(number)
        if state is TrialState.COMPLETE:
            study.tell(trial, curve[max(curve)])
        elif state is not None:
            study.tell(trial, state=state)
    return study


def seen(study: optuna.Study, enough: int) -> list[tuple[str, float | None]]:
    trials = RungView(study, HALVING, enough).get_trials(deepcopy=False)
    return [(trial.state.name, trial.value) for trial in trials]


CURVES = ({10: 5.0, 20: 4.0, 30: 3.0}, {10: 6.0, 20: 4.5}, {10: 7.0}, {5: 9.0}, {})


def test_trials_are_shown_at_the_highest_rung_that_enough_have_reached() -> None:
    ends = {0: TrialState.COMPLETE, 1: TrialState.PRUNED}
    study = study_of(*CURVES, ends=ends)
    at_10 = [("COMPLETE", 5.0), ("COMPLETE", 6.0), ("COMPLETE", 7.0)]
    at_20 = [("COMPLETE", 4.0), ("COMPLETE", 4.5), ("PRUNED", None)]
    at_end = [("COMPLETE", 3.0), ("PRUNED", None), ("PRUNED", None)]
    others = [("PRUNED", None), ("RUNNING", None)]
    assert seen(study, enough=3) == at_10 + others
    assert seen(study, enough=2) == at_20 + others
    assert seen(study, enough=1) == at_end + others


def test_before_enough_trials_no_trial_counts_as_complete() -> None:
    assert {state for state, _ in seen(study_of(*CURVES), enough=4)} == {"PRUNED", "RUNNING"}


def test_what_is_shown_leaves_the_study_as_it_is() -> None:
    study = study_of(*CURVES, ends={3: TrialState.FAIL})
    before = study.get_trials()
    assert seen(study, enough=1)[3] == ("FAIL", None)
    assert study.get_trials() == before


def test_a_diverged_trial_is_not_shown_with_the_value_it_had_before() -> None:
    study = study_of(*CURVES, ends={0: TrialState.PRUNED, 1: TrialState.PRUNED})
    diverged = study.ask(SPACE)
    diverged.report(0.5, 10)
    diverged.set_user_attr("reason", Reason.DIVERGED.value)
    study.tell(diverged, state=TrialState.PRUNED)
    assert seen(study, enough=3)[-1] == ("PRUNED", 0.5)


@pytest.mark.parametrize(("state", "pruner"), [(None, PARKED), (TrialState.PRUNED, ASHA)])
def test_a_sampler_proposes_as_if_the_trials_that_stopped_at_a_rung_were_complete(
    state: TrialState | None, pruner: Asha | ParkedHalving
) -> None:
    curves = [{10: float(value)} for value in range(20)]
    stopped = study_of(*curves, ends=dict.fromkeys(range(20), state) if state else {})
    complete = study_of(*curves, ends=dict.fromkeys(range(20), TrialState.COMPLETE))

    def proposed(study: optuna.Study, sampler: optuna.samplers.BaseSampler) -> list[int]:
        study.sampler = sampler
        return [study.ask(SPACE).params["x"] for _ in range(5)]

    expected = proposed(complete, TPESampler(seed=0))
    if state is None:  # without the view they are running, and so taken for bad
        alone = study_of(*curves)
        assert proposed(alone, TPESampler(seed=0)) != expected
    assert proposed(stopped, at_rungs(TPESampler(seed=0), rungs_of(pruner))) == expected


@pytest.mark.parametrize(
    "pruner",
    [
        NoPruner(name="none"),
        Hyperband(name="hyperband"),
        Asha(name="asha", metric="train_loss"),
        Asha(name="asha", unit="tokens", min_tokens=1000),
    ],
)
def test_where_a_pruner_does_not_halve_by_the_objective_and_steps_the_sampler_is_itself(
    pruner: PrunerConfig,
) -> None:
    sampler = TPESampler(seed=0)
    assert at_rungs(sampler, rungs_of(pruner)) is sampler


def test_several_objectives_are_left_as_they_are() -> None:
    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=at_rungs(TPESampler(seed=0), rungs_of(ASHA))
    )
    for _ in range(12):
        study.tell(study.ask(SPACE), [1.0, 2.0])
    assert 0 <= study.ask(SPACE).params["x"] <= 99


def test_a_trial_shown_before_its_end_has_no_cost_and_breaks_no_constraint_yet() -> None:
    study = optuna.create_study()
    for number in range(2):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(5.0 + number, 10)
        trial.set_user_attr("device_seconds", 3.0)
    study._storage.set_trial_system_attr(0, "constraints", [-1.0, 0.0])
    study.tell(0, 5.0)
    complete, parked = RungView(study, HALVING, enough=2).get_trials(deepcopy=False)
    assert [t.state for t in (complete, parked)] == [TrialState.COMPLETE] * 2
    assert list(parked.constraints.values()) == [0.0, 0.0]
    assert "device_seconds" in complete.user_attrs
    assert "device_seconds" not in parked.user_attrs
    assert "device_seconds" in study.trials[1].user_attrs, "nothing was written"
