"""Population-based training: who exploits whom, in the ledger, whatever dies on the way."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from hpo.control.attempts import TrialAttempt
from hpo.control.messages import Message
from hpo.reading.views import trial_details
from hpo.search.population import Member, ScheduleConfig
from hpo.search.space import FloatDimension
from hpo.study.load import load_study
from hpo.workers.pbt import make_explore
from storage import Reason
from tests.hpo.grown import SPACE, STUDY, TRAIN, Grown
from tests.hpo.study_files import refusal, written
from trainer.config.train import TrainConfig

pytestmark = pytest.mark.slow

DIMENSIONS = {path: FloatDimension.model_validate(d) for path, d in SPACE.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """A population of four, trained to its end one at a time and undisturbed."""
    stage = Grown(tmp_path_factory.mktemp("alone"))
    stage.run()
    return stage


def members(values: list[float]) -> list[Member]:
    params = {"optim.lr": 1e-3, "layerdrop.p_init": 0.2}
    return [Member(10 + n, params, value) for n, value in enumerate(values)]


@given(
    st.lists(st.floats(1, 1e3) | st.just(float("inf")), min_size=2, max_size=9),
    st.floats(0.01, 0.5),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=50)
def test_the_worst_go_on_from_the_best_with_other_parameters_inside_the_space(
    values: list[float], fraction: float, seed: int
) -> None:
    schedule = ScheduleConfig(quantile_fraction=fraction)
    explore = make_explore(schedule, DIMENSIONS, seed)
    before = random.getstate()
    exploits = explore(100, members(values))
    assert explore(100, members(values)) == exploits, "by seed and step alone"
    assert random.getstate() == before, "the global generator is left alone"
    ranked = sorted(range(len(values)), key=lambda n: values[n])
    for exploit in exploits:
        loser, parent = exploit.number - 10, exploit.parent - 10
        assert values[loser] >= values[parent] < float("inf")
        assert ranked.index(parent) < (len(values) + 1) // 2 or values.count(values[parent]) > 1
        assert 1e-4 <= exploit.params["optim.lr"] <= 1e-2
        assert 0.05 <= exploit.params["layerdrop.p_init"] <= 0.4
    if values.count(float("inf")) == 0:
        assert len(exploits) == max(1, min(-(-len(values) * fraction // 1), len(values) // 2))


def test_an_exploit_is_a_trial_of_its_own_with_its_parent_and_begins_at_its_checkpoint(
    alone: Grown,
) -> None:
    stage = alone
    assert len(stage.trials) == 6, "four, and one at each of steps 100 and 200"
    rates = [trial.params["optim.lr"] for trial in stage.trials]
    for number, step, before in ((4, 100, range(4)), (5, 200, range(5))):
        child = stage.trials[number]
        alive = [n for n in before if stage.trials[n].last_step in (step, 300) or n == 4]
        parent = child.user_attrs["parent"]
        assert child.user_attrs["parent_step"] == step
        assert rates[parent] == min(rates[n] for n in alive)
        (loser,) = [t for t in stage.trials if t.last_step == step]
        assert (loser.state, loser.user_attrs["reason"]) == (TrialState.PRUNED, "exploited")
        assert loser.user_attrs["member"] == child.user_attrs["member"]
        assert rates[loser.number] == max(rates[n] for n in alive)
        assert min(child.intermediate_values) == step + 50
    ended = [t.state for t in stage.trials]
    assert ended.count(TrialState.COMPLETE) == 4
    assert stage.ledger.study("played").reserved_trials == 6


def test_a_child_is_told_where_its_parents_checkpoint_is(tmp_path: Path) -> None:
    stage = Grown(tmp_path)
    controller = stage.controller()
    while (assignment := controller.next()) is not None and assignment.number < 4:
        while stage.advance(controller, assignment):
            pass
    assert assignment is not None
    parent = stage.trials[stage.trials[4].user_attrs["parent"]]
    assert assignment.config["fork"] == {"run": parent.user_attrs["run_dir"], "step": 100}
    assert assignment.config["output_dir"] == "/runs/played/trial-0004"
    assert (assignment.number, assignment.reported_step) == (4, 100)
    assert TrainConfig.model_validate(assignment.config).fork is not None


@pytest.mark.parametrize(("concurrent", "kill_after"), [(4, None), (3, 2)])
def test_neither_who_comes_first_nor_a_kill_changes_anything(
    tmp_path: Path, alone: Grown, concurrent: int, kill_after: int | None
) -> None:
    other = Grown(tmp_path, resources={"concurrent_trials": concurrent})
    other.run(1, kill_after)
    assert other.told() == alone.told()


def test_a_member_that_ended_early_is_the_worst_and_its_place_is_taken(tmp_path: Path) -> None:
    stage = Grown(tmp_path)
    controller = stage.controller()
    for kind in ("diverged", None, None, None):
        assignment = controller.next()
        assert isinstance(assignment, TrialAttempt)
        if kind:
            controller.handle(assignment.number, 1, Message("diverged", 20))
        while stage.advance(controller, assignment):
            pass
    child = controller.next()
    assert child is not None
    assert stage.trials[4].user_attrs["member"] == stage.trials[0].user_attrs["member"] == 0
    shown = trial_details(stage.ledger, "played", 4)
    assert (shown["parent"], shown["parent_step"]) == (stage.trials[4].user_attrs["parent"], 100)
    states = [(t.state.name, t.user_attrs.get("reason")) for t in stage.trials]
    assert states == [("PRUNED", "diverged"), *[("RUNNING", None)] * 4]


def test_a_spent_budget_ends_no_member_that_nothing_could_replace(tmp_path: Path) -> None:
    stage = Grown(tmp_path, budget={"trials": 5})
    stage.run()
    states = [trial.state for trial in stage.trials]
    assert len(states) == 5
    assert states.count(TrialState.COMPLETE) == 4


def test_members_wait_parked_and_go_on(alone: Grown) -> None:
    reasons = [a.reason for t in alone.trials for a in alone.ledger.trial_attempts(t._trial_id)]
    assert reasons.count(None) == 4
    assert set(reasons) == {None, Reason.PARKED}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruner": {"name": "median"}}, "pruner.name: with `schedule` it must be none"),
        ({"repeats": 2}, "repeats: with `schedule` it must be 1, not 2"),
        ({"budget": {"trials": 3}}, "budget.trials: 3 is less than schedule.population 4"),
        (
            {"space": {"model.dropout": {"type": "float", "low": 0.0, "high": 0.5}}},
            "space.model.dropout: may not change while a run trains; with `schedule`, search "
            "optim.lr and layerdrop.p_init",
        ),
        (
            {"space": {"optim.lr": {"type": "categorical", "choices": [0.1, 0.2]}}},
            "space.optim.lr: with `schedule` it is type: float, without step or when",
        ),
        (
            {"train": {**TRAIN, "optim": {"schedule": "cosine"}}},
            "optim.schedule of the train config is cosine; use constant",
        ),
        (
            {"schedule": {"interval_steps": 75}},
            "schedule.interval_steps: must be a multiple of eval_every 50",
        ),
        ({"schedule": {"interval_steps": 300}}, "less than steps 300, not 300"),
        ({"train": {**TRAIN, "fork": {"run": "a", "step": 1}}}, "train.fork: with `schedule`"),
        (
            {"train": {**TRAIN, "keep_checkpoints": 3}},
            "set keep_checkpoints to 4 or more",
        ),
        (
            {
                "objectives": [{"metric": "valid_ppl_depth_2"}],
                "train": {**TRAIN, "evaluation": {"depths": [2]}},
            },
            "set evaluation.depths_at: each",
        ),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_learned_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    study = {**STUDY, "train": TRAIN}
    assert load_study(written(tmp_path, **study)).schedule is not None
    assert message in refusal(tmp_path, **{**study, **changes})
