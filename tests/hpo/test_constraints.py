"""Constraints, from the study file to what is called best: played on a real ledger, without Ray."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from rich.console import Console

from hpo.control.messages import Message
from hpo.observers.live import Board
from hpo.reading import tables, views
from hpo.reading.dashboard.overlay import application
from hpo.search.constraints import Constraint
from tests.hpo.stage import Stage, play
from tests.hpo.study_files import refusal

BOUNDS = [{"metric": "peak_memory_bytes", "max": 1000}, {"metric": "tokens_per_second", "min": 50}]
TWO = [{"metric": "valid_ppl"}, {"metric": "step_seconds"}]


def measured(ppl: float, memory: float = 900.0, speed: float = 60.0) -> dict[str, float]:
    return {
        "valid_ppl": ppl,
        "step_seconds": 1 / ppl,
        "peak_memory_bytes": memory,
        "tokens_per_second": speed,
    }


def ended(ppl: float, memory: float = 900.0, speed: float = 60.0) -> Message:
    return Message("finished", 300, measured(ppl, memory, speed))


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12), st.booleans())
def test_a_violation_is_positive_just_where_the_bound_is_broken(
    bound: float, value: float, is_max: bool
) -> None:
    name = "max" if is_max else "min"
    constraint = Constraint.model_validate({"metric": "parameters", name: bound})
    assert (constraint.violation(value) > 0) == (value > bound if is_max else value < bound)


def test_a_violation_is_a_share_of_the_bound() -> None:
    memory, speed = (Constraint.model_validate(bound) for bound in BOUNDS)
    assert (memory.violation(1100), speed.violation(40)) == (0.1, 0.2)
    assert Constraint(metric="train_loss", max=0).violation(3) == 3


def test_every_ending_leaves_as_many_numbers_and_the_last_is_out_of_memory(url: str) -> None:
    stage = Stage(url, constraints=BOUNDS, budget={"trials": 9})
    controller = stage.controller()
    evaluated = Message("evaluated", 100, measured(9, memory=1500))
    play(controller, ended(5, memory=1100))
    play(controller, evaluated, Message("diverged", 120))
    play(controller, evaluated, Message("out_of_memory", detail="MemoryError"))
    play(controller, Message("out_of_memory", detail="MemoryError"))
    play(controller, evaluated, Message("error", detail="boom"))
    found = [list(trial.constraints.values()) for trial in stage.trials]
    assert found == [
        [0.1, -0.2, 0.0],
        [0.5, -0.2, 0.0],
        [0.5, -0.2, 1.0],
        [0.0, 0.0, 1.0],
        [],  # a failure of the machinery says nothing
    ]


def test_a_study_without_constraints_is_none_to_samplers(url: str) -> None:
    stage = Stage(url)
    controller = stage.controller()
    play(controller, ended(5))
    play(controller, Message("out_of_memory", detail="MemoryError"))
    assert [list(trial.constraints.values()) for trial in stage.trials] == [[], [1.0]]
    assert [view["feasible"] for view in views.trial_list(stage.ledger, "played")] == [None, None]


def test_a_trial_parked_for_good_is_judged_by_what_it_reported_last(url: str) -> None:
    pruner = {"name": "parked_halving", "min_steps": 100, "reduction_factor": 2}
    stage = Stage(url, constraints=BOUNDS, pruner=pruner, budget={"trials": 2})
    controller = stage.controller()
    play(controller, Message("evaluated", 100, measured(9, memory=1500), first_step=0))
    play(controller, Message("evaluated", 100, measured(8), first_step=0), ended(7))
    assert controller.next() is None
    parked = stage.trials[0]
    assert parked.state is TrialState.PRUNED
    assert list(parked.constraints.values()) == [0.5, -0.2, 0.0]


def test_no_command_calls_an_infeasible_trial_best(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Stage(url, constraints=BOUNDS)
    controller = stage.controller()
    play(controller, ended(3, memory=1100))
    assert views.best_trials(stage.ledger, "played") == []
    play(controller, ended(6))
    play(controller, ended(4, speed=10))
    (best,) = views.best_trials(stage.ledger, "played")
    assert (best["trial"], best["feasible"], best["violations"]) == (1, True, {})
    status = views.study_status(stage.ledger, "played")
    assert status["best"] == best
    found = views.trial_list(stage.ledger, "played")
    assert [trial["violations"] for trial in found] == [
        {"peak_memory_bytes <= 1000": pytest.approx(100)}, {},
        {"tokens_per_second >= 50": pytest.approx(40)},
    ]  # fmt: skip
    tables.trials(found)
    tables.trial(views.trial_details(stage.ledger, "played", 2))
    said = capsys.readouterr().out
    assert "no: peak_memory_bytes <= 1000 by 100" in said
    assert "feasible: no: tokens_per_second >= 50 by 40" in said


def test_the_live_view_calls_no_infeasible_trial_best(url: str) -> None:
    stage = Stage(url, constraints=BOUNDS)
    out = io.StringIO()
    objective, constraints = stage.config.objectives[0], stage.config.constraints
    board = Board(Console(file=out), "played", objective, 4, constraints)
    controller = stage.controller(board)
    play(controller, ended(6))
    play(controller, ended(3, memory=1100))
    assert board.best == (0, 6.0)
    assert "trial 1 COMPLETE valid_ppl 3, infeasible" in out.getvalue()
    resumed = Board(Console(file=out), "played", objective, 4, constraints)
    resumed.recall(controller.study)
    assert resumed.best == (0, 6.0)


def test_a_larger_value_is_best_where_the_study_says_so(url: str) -> None:
    faster = [{"metric": "tokens_per_second", "direction": "maximize"}]
    stage = Stage(url, objectives=faster, constraints=[{"metric": "valid_ppl", "max": 10}])
    controller = stage.controller()
    for ppl, speed in ((5, 60.0), (20, 90.0), (6, 80.0)):
        play(controller, ended(ppl, speed=speed))
    assert [view["trial"] for view in views.best_trials(stage.ledger, "played")] == [2]


@pytest.mark.parametrize("objectives", [TWO[:1], TWO])
def test_the_dashboard_and_the_command_line_have_one_front_without_infeasible_trials(
    url: str, objectives: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(url, objectives=objectives, constraints=BOUNDS, budget={"trials": 5})
    controller = stage.controller()
    for ppl, memory in ((3, 1100), (6, 900), (5, 900), (2, 1200)):
        play(controller, ended(ppl, memory))
    import optuna_dashboard  # which takes seconds: for the tests that ask for it

    alone = optuna_dashboard.wsgi(stage.ledger.storage)
    assert front_in(alone, stage)[-1:] == [3], "optuna-dashboard alone does not look"
    module = optuna_dashboard._app
    monkeypatch.setattr(module, "serialize_study_detail", module.serialize_study_detail)
    expected = [1, 2] if len(objectives) > 1 else [2]
    assert [view["trial"] for view in views.best_trials(stage.ledger, "played")] == expected
    assert front_in(application(stage.ledger), stage) == expected


def front_in(app: Any, stage: Stage) -> list[int]:
    """The best trials' numbers, from the dashboard's own HTTP API."""
    environ: dict[str, Any] = {
        "PATH_INFO": f"/api/studies/{stage.record.study_id}",
        "QUERY_STRING": "after=0",
    }
    setup_testing_defaults(environ)
    answer = json.loads(b"".join(app(environ, lambda *_: lambda _: None)))
    assert len(answer["trials"]) == 4
    return [trial["number"] for trial in answer["best_trials"]]


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        ({"metric": "peak_memory", "max": 9}, "metric: there is no 'peak_memory'; did you mean "),
        ({"metric": "parameters"}, "parameters: give either max or min; a range is two"),
        ({"metric": "parameters", "min": 1, "max": 2}, "parameters: give either max or min"),
        ({"metric": "parameters", "max": float("inf")}, "max: must be a finite number, not inf"),
        ({"metric": "valid_ppl_depth_2", "max": 9}, "metric: valid_ppl_depth_2 needs 2 in "),
        ({"metric": "parameters", "maximum": 2}, "maximum: no such setting; did you mean max?"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_constraint_is_named(
    tmp_path: Path, constraint: dict[str, Any], words: str
) -> None:
    message = refusal(tmp_path, constraints=[constraint])
    assert message.removeprefix("constraints.0").lstrip(".: ").startswith(words)


def test_what_cannot_be_best_is_not_trained_again_under_other_seeds(url: str) -> None:
    stage = Stage(url, constraints=BOUNDS, repeats=2)
    controller = stage.controller()
    assert [play(controller, ended(5)) for _ in range(2)] == [0, 0]
    assert play(controller, ended(3, memory=1100)) == 1
    assert play(controller, ended(4)) == 2, "the infeasible one was not repeated"
    assert play(controller, ended(4)) == 2, "nor is it one to be better than"
