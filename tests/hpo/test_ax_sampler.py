"""The Ax sampler: what the ledger's trials become in Ax, and that proposals follow from them."""

from __future__ import annotations

import copy
import logging
import math
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.control.attempts import TrialAttempt
from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.search.samplers import ahead
from hpo.search.samplers import ax as ax_sampler
from hpo.search.samplers.ax import AxSampler, _experiment, _read
from storage import Ledger
from tests.hpo.stage import Stage, ppl

pytestmark = pytest.mark.slow

SPACE: dict[str, optuna.distributions.BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "policy": CategoricalDistribution(["static", None, True]),
    "layers": IntDistribution(2, 12, step=2),
    "dropout": FloatDistribution(0.0, 0.3, step=0.1),
    "units": IntDistribution(16, 1024, log=True),
    "alpha": FloatDistribution(-1, 1),
}


def past(number: int, **changes: Any) -> FrozenTrial:
    """A past trial of `SPACE`; which one depends on `number`."""
    params = {
        "lr": 1e-4 * 1.3**number,
        "policy": ["static", None, True][number % 3],
        "layers": 2 + 2 * (number % 6),
        "dropout": (0.0, 0.1, 0.2, 0.3)[number % 4],
        "units": 16 + 7 * number,
        "alpha": -1 + number / 8,
    }
    given = {"params": params, "distributions": SPACE, "values": [9.0 - number / 3, 0.1 * number]}
    return create_trial(**{**given, **changes})


def study_of(trials: list[FrozenTrial], startup_trials: int = 4) -> optuna.Study:
    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=AxSampler(3, startup_trials)
    )
    study.set_metric_names(["valid_ppl", "tokens_per_second"])
    study.add_trials(trials)
    return study


def experiment_of(trials: list[FrozenTrial]) -> Any:
    study = study_of(trials)
    return _experiment(SPACE, _read(study, len(trials), SPACE), study.directions)


def states(experiment: Any) -> list[str]:
    return [trial.status.name for trial in experiment.trials.values()]


def data(experiment: Any, outcome: str) -> list[tuple[int, float, float]]:
    rows = experiment.lookup_data().df
    rows = rows[rows.metric_name == outcome]
    return list(zip(rows.trial_index, rows["mean"], rows["sem"], strict=True))


def test_only_complete_trials_are_observed_and_no_ended_one_is_free_to_come_again() -> None:
    pruned = past(1, state=TrialState.PRUNED, user_attrs={"reason": "out_of_memory"}, values=None,
                  intermediate_values={100: 3.0}, system_attrs={"constraints": [1.0]})  # fmt: skip
    failed = past(2, state=TrialState.FAIL, values=None)
    running = past(3, state=TrialState.RUNNING, values=None)
    infinite = past(4, values=[math.inf, 0.1])
    enqueued = create_trial(
        state=TrialState.WAITING, system_attrs={"fixed_params": {"lr": 1e-3, "alpha": 0.0}}
    )
    experiment = experiment_of([past(0), pruned, failed, running, infinite, enqueued])
    assert states(experiment) == ["COMPLETED", "ABANDONED", "ABANDONED", "RUNNING", "ABANDONED"]
    assert [index for index, *_ in data(experiment, "objective0")] == [0]


def test_perplexity_is_modelled_as_its_logarithm_with_its_error() -> None:
    repeated = past(1, values=[5.0, 0.2], user_attrs={"standard_errors": [0.5, 0.01], "repeats": 4})
    experiment = experiment_of([past(0, values=[4.0, 0.1]), repeated])
    single_error = 0.5 / 5.0 * 2  # a mean of four trainings is twice as sure as one
    perplexity, speed = data(experiment, "objective0"), data(experiment, "objective1")
    assert [value for row in perplexity for value in row] == pytest.approx(
        [0, math.log(4.0), single_error, 1, math.log(5.0), 0.1]
    )
    assert [mean for _, mean, _ in speed] == [0.1, 0.2]
    unknown = data(experiment_of([past(0), past(1)]), "objective0")
    assert all(math.isnan(sem) for *_, sem in unknown)


def test_directions_and_constraints_are_ax_s() -> None:
    trials = [past(n, system_attrs={"constraints": [n - 1.0, 0.0]}) for n in range(3)]
    incomplete = past(3, system_attrs={"constraints": []})
    experiment = experiment_of([*trials, incomplete])
    goals = experiment.optimization_config
    assert [weight for _, weight in goals.objective.metric_weights] == [-1.0, 1.0]
    (limit,) = goals.outcome_constraints
    assert str(limit) == "OutcomeConstraint(constraint0 <= 0)"
    assert [mean for _, mean, _ in data(experiment, "constraint0")] == [-1.0, 0.0, 1.0]
    assert states(experiment)[3] == "ABANDONED", "what it broke is not known"


def test_a_trial_outside_the_space_as_it_is_now_is_left_out() -> None:
    outside = past(1, params={"lr": 0.5}, distributions={"lr": FloatDistribution(0, 1)})
    assert len(experiment_of([past(0), outside]).trials) == 1


@pytest.mark.usefixtures("coarse_ax")
def test_a_model_s_proposals_are_in_bounds_of_optuna_s_types_and_all_different() -> None:
    # One objective: with two, Ax takes ten times as long for a space with categoricals.
    study = optuna.create_study(sampler=AxSampler(3, startup_trials=4))
    pruned = past(9, state=TrialState.PRUNED, values=None)
    study.add_trials([*(past(n, values=[9.0 - n / 3]) for n in range(6)), pruned])
    asked = [study.ask(SPACE) for _ in range(4)]  # four pending at a time
    for trial in asked:
        for name, distribution in SPACE.items():
            value = trial.params[name]
            assert distribution._contains(distribution.to_internal_repr(value))
            if not isinstance(distribution, CategoricalDistribution):
                assert type(value) is (int if isinstance(distribution, IntDistribution) else float)
    everything = [str(trial.params) for trial in study.trials]
    assert len(set(everything)) == len(everything)


@pytest.mark.usefixtures("coarse_ax")
def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.disable_default_handler()
    study_of([past(n) for n in range(5)]).ask(SPACE)
    optuna.logging.enable_default_handler()
    assert capfd.readouterr() == ("", "")


def test_a_controller_killed_after_4_of_8_trials_is_followed_by_the_same_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "PATIENCE", 1e9)  # these trials take no time at all
    monkeypatch.setattr(ahead, "START_SECONDS", 1e9)
    changes: dict[str, Any] = {
        "sampler": {"name": "ax", "seed": 0, "startup_trials": 3},
        "budget": {"trials": 8},
        "space": {
            "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "layerdrop.p_init": {"type": "float", "low": 0.0, "high": 0.5},
        },
    }

    def play(stage: Stage, controller: Controller, until: int) -> None:
        while len(stage.trials) < until:
            assignment = controller.next()
            if isinstance(assignment, TrialAttempt):
                p = assignment.params
                loss = abs(math.log(p["optim.lr"] / 1e-3)) + p["layerdrop.p_init"]
                controller.handle(assignment.number, 1, Message("finished", 300, ppl(10 + loss)))

    stage = Stage(f"sqlite:///{tmp_path}/whole.db", **changes)
    controller = stage.controller()
    play(stage, controller, 4)
    # What a kill leaves is the ledger, as it is between two transactions.
    with (
        sqlite3.connect(tmp_path / "whole.db") as whole,
        sqlite3.connect(tmp_path / "killed.db") as killed,
    ):
        whole.backup(killed)
    play(stage, controller, 8)
    heir = copy.copy(stage)
    heir.ledger = Ledger.open(f"sqlite:///{tmp_path}/killed.db")
    heir.record = heir.ledger.study("played")
    heir.lapse()
    play(heir, heir.controller(), 8)
    assert [t.params for t in heir.trials] == [t.params for t in stage.trials]
    assert len({str(t.params) for t in stage.trials}) == 8
    assert {t.user_attrs["suggested_by"] for t in stage.trials} == {"ax"}


def test_others_are_heard_while_ax_is_silent() -> None:
    with ax_sampler._silence():
        assert logging.getLogger("hpo").isEnabledFor(logging.WARNING)
        assert {handler.level for handler in logging.getLogger("ax").handlers} == {logging.CRITICAL}
