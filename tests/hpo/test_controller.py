"""The controller on a real ledger, without Ray: attempts are played by the test."""

from __future__ import annotations

import io
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from rich.console import Console

from hpo.control.messages import Message
from hpo.observers.live import Board
from hpo.service import launch
from hpo.service.opening import Place
from storage import LeaseLost, Reason
from tests.hpo.stage import Stage, Watcher, finish, play, ppl
from trainer.config.settings import ConfigError


def test_a_study_runs_to_its_budget_and_no_further(url: str) -> None:
    stage = Stage(url)
    controller = stage.controller()
    assert [finish(controller, 10.0 - n) for n in range(4)] == [0, 1, 2, 3]
    assert controller.next() is None
    assert controller.look_for_end()
    assert [t.state for t in stage.trials] == [TrialState.COMPLETE] * 4


def test_concurrent_trials_are_as_many_as_the_study_says(url: str) -> None:
    controller = Stage(url, resources={"concurrent_trials": 2}).controller()
    first, second = controller.next(), controller.next()
    assert first is not None
    assert second is not None
    assert controller.next() is None
    assert not controller.look_for_end()
    controller.handle(first.number, 1, Message("finished", 300, ppl(1.0)))
    assert controller.next() is not None


def test_observers_are_told_in_order(url: str) -> None:
    watcher = Watcher()
    controller = Stage(url).controller(watcher)
    play(controller, Message("evaluated", 100, ppl(9.0)), Message("finished", 300, ppl(8.0)))
    play(controller, Message("diverged", 120))
    assert watcher.seen == [
        ("begin", 0, 1), ("report", 0, 100), ("report", 0, 300), ("end", 0, "COMPLETE", None),
        ("begin", 1, 1), ("end", 1, "PRUNED", "diverged"),
    ]  # fmt: skip


def test_a_resumed_study_proposes_what_the_uninterrupted_one_does(tmp_path: Path) -> None:
    def params(folder: Path, *, restart_every: int) -> list[dict[str, Any]]:
        folder.mkdir()
        stage = Stage(f"sqlite:///{folder}/hpo.db", budget={"trials": 9})
        for number in range(9):
            if number % restart_every == 0:
                controller = stage.controller()
            finish(controller, abs(number - 4.0))
            stage.lapse()
        return [trial.params for trial in stage.trials]

    uninterrupted = params(tmp_path / "a", restart_every=9)
    assert params(tmp_path / "b", restart_every=2) == uninterrupted
    assert len({trial["optim.lr"] for trial in uninterrupted}) == 9, "no point is proposed twice"


def test_pending_trials_are_different_points(url: str) -> None:
    controller = Stage(url, resources={"concurrent_trials": 4}).controller()
    asked = [controller.next() for _ in range(4)]
    assert len({a.params["optim.lr"] for a in asked if a is not None}) == 4


def test_an_orphan_keeps_number_and_parameters_and_goes_on_as_its_next_attempt(url: str) -> None:
    stage = Stage(url)
    dead = stage.controller()
    orphan = dead.next()
    assert orphan is not None
    dead.handle(orphan.number, 1, Message("evaluated", 100, ppl(9.0), first_step=0))
    stage.lapse()
    heir = stage.controller()
    adopted = heir.next()
    assert adopted is not None
    assert (adopted.number, adopted.attempt.number) == (0, 2)
    assert (adopted.params, adopted.config) == (orphan.params, orphan.config)
    assert adopted.reported_step == 100
    assert dead.handle(orphan.number, 1, Message("finished", 300, ppl(1.0))) is False
    assert isinstance(dead.broken, LeaseLost)
    assert dead.look_for_end()
    assert dead.next() is None
    heir.handle(0, 2, Message("finished", 300, ppl(7.0), first_step=100))
    (trial,) = stage.trials
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 7.0)
    assert trial.intermediate_values == {100: 9.0, 300: 7.0}
    reasons = [a.reason for a in stage.ledger.trial_attempts(trial._trial_id)]
    assert reasons == [Reason.CONTROLLER_LOST, None]


def test_a_lost_worker_is_tried_again_until_its_retries_are_used_up(url: str) -> None:
    stage = Stage(url, failures={"max_retries": 2, "max_failures": 1})
    controller = stage.controller()
    for attempt in (1, 2, 3):
        assignment = controller.next()
        assert assignment is not None
        assert (assignment.number, assignment.attempt.number) == (0, attempt)
        controller.handle(0, attempt, Message("worker_lost", detail="rank 1 died"))
    (trial,) = stage.trials
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "worker_lost")
    assert trial.user_attrs["attempts"] == 3
    assert controller.look_for_end()
    assert controller.failing


def test_a_busy_run_folder_is_waited_for_and_counts_as_no_retry(url: str) -> None:
    stage = Stage(url, failures={"max_retries": 0})
    controller = stage.controller()
    for _ in range(3):
        assert play(controller, Message("busy", detail="another process")) == 0
    finish(controller)
    (trial,) = stage.trials
    reasons = [attempt.reason for attempt in stage.ledger.trial_attempts(trial._trial_id)]
    assert reasons == [Reason.BUSY, Reason.BUSY, Reason.BUSY, None]
    assert trial.state is TrialState.COMPLETE


def test_a_trial_that_is_due_again_soon_keeps_its_place(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = Stage(url).controller()
    monkeypatch.setattr("hpo.control.judge.FIRST_BACKOFF_SECONDS", 0.3)
    play(controller, Message("worker_lost"))
    assert controller.next() is None, "with one worker the study repeats, whatever it lost"
    time.sleep(0.4)
    again = controller.next()
    assert again is not None
    assert (again.number, again.attempt.number) == (0, 2)


def test_what_an_attempt_says_after_its_end_is_left_alone(url: str) -> None:
    stage = Stage(url)
    controller = stage.controller()
    play(controller, Message("worker_lost"))
    again = controller.next()
    assert again is not None
    assert controller.handle(0, 1, Message("finished", 300, ppl(1.0))) is False
    assert stage.trials[0].state is TrialState.RUNNING
    controller.handle(0, 2, Message("finished", 300, ppl(2.0)))
    assert stage.trials[0].value == 2.0


def test_a_pruned_trial_ends_in_the_report_that_pruned_it(url: str) -> None:
    stage = Stage(url, pruner={"name": "median", "startup_trials": 1})
    controller = stage.controller()
    play(controller, Message("evaluated", 100, ppl(5.0)), Message("finished", 300, ppl(4.0)))
    assignment = controller.next()
    assert assignment is not None
    assert controller.handle(1, 1, Message("evaluated", 100, ppl(50.0))) is False
    trial = stage.trials[1]
    assert (trial.state, trial.value) == (TrialState.PRUNED, 50.0)
    assert trial.user_attrs["reason"] == "pruned"


def test_asha_prunes_the_worse_half_at_a_rung(url: str) -> None:
    stage = Stage(
        url, pruner={"name": "asha", "min_steps": 100, "reduction_factor": 2}, budget={"trials": 6}
    )
    controller = stage.controller()
    for value in (5.0, 50.0, 4.0, 60.0):
        play(
            controller, Message("evaluated", 100, ppl(value)), Message("finished", 300, ppl(value))
        )
    states = [trial.state.name for trial in stage.trials]
    assert states == ["COMPLETE", "PRUNED", "COMPLETE", "PRUNED"]


def test_out_of_memory_is_a_broken_constraint_to_samplers_and_dashboard(url: str) -> None:
    stage = Stage(url)
    play(stage.controller(), Message("out_of_memory", detail="Traceback\nMemoryError: no"))
    (trial,) = stage.trials
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.PRUNED, "out_of_memory")
    assert any(value > 0 for value in trial.constraints.values())
    assert trial.user_attrs["detail"] == "MemoryError: no"


def test_failures_in_a_row_stop_the_study_and_one_success_starts_the_count_anew(url: str) -> None:
    stage = Stage(url, failures={"max_failures": 2}, budget={"trials": 9})
    controller = stage.controller()
    play(controller, Message("error", detail="boom"))
    finish(controller)
    play(controller, Message("error", detail="boom"))
    assert not controller.look_for_end()
    play(controller, Message("error", detail="boom"))
    assert controller.look_for_end()
    assert controller.gave_up is not None
    assert "max_failures" in controller.gave_up


def test_a_stopped_study_hands_out_nothing_and_keeps_its_trials_running(url: str) -> None:
    stage = Stage(url)
    controller = stage.controller()
    assignment = controller.next()
    assert assignment is not None
    controller.stopping = True
    assert controller.next() is None
    assert not controller.look_for_end(), "one attempt has not ended yet"
    controller.handle(0, 1, Message("stopped", 42))
    assert controller.look_for_end()
    (trial,) = stage.trials
    assert trial.state is TrialState.RUNNING
    assert [each.trial_id for each in stage.ledger.waiting(stage.record)] == [trial._trial_id]


def test_hours_are_counted_over_all_controllers(url: str) -> None:
    stage = Stage(url, budget={"trials": 9, "hours": 1.0})
    first = stage.controller()
    finish(first)
    with stage.ledger.sessions() as session:  # as if the first controller had run for an hour
        session.execute(sa.text("UPDATE hpo_controllers SET started_at = started_at - 3600"))
        session.commit()
    stage.lapse()
    second = stage.controller()
    assert second.next() is None
    assert second.gave_up == "the budget of 1 hours is spent (`hpo resume --hours` raises it)"


def test_a_spent_budget_of_hours_can_be_raised_at_a_resume(url: str, tmp_path: Path) -> None:
    stage = Stage(url, budget={"trials": 9, "hours": 1.0, "device_hours": 1.0})
    finish(stage.controller())
    with stage.ledger.sessions() as session:
        for table in ("hpo_controllers", "hpo_attempts"):
            session.execute(sa.text(f"UPDATE {table} SET started_at = started_at - 5400"))
        session.commit()
    stage.lapse()
    place = Place(url, str(tmp_path))
    ask: Any = partial(launch.resume, "played", place, trials=None, same_machine=False, say=print)
    for of in ("hours", "device_hours"):
        with pytest.raises(ConfigError, match=r"1.2: study played has taken 1.50 hours already"):
            ask(**{of: 1.2})
    attributes = {f"budget_{of}": most for of, most in ask(hours=2, device_hours=3).hours.items()}
    stage.ledger.release(stage.ledger.acquire(stage.record, attributes=attributes))
    controller = stage.controller()
    finish(controller)
    assert controller.gave_up is None


def test_an_objective_known_only_at_the_end_is_told_there_with_its_front(url: str) -> None:
    stage = Stage(url, objectives=[{"metric": "valid_ppl_depth_2"}])
    point = {
        "depth": 2, "search": "greedy", "layers": [1, 4], "valid_ppl": 9.5,
        "parameters": 3 * 10**9, "seconds_per_token": 1e-5,
    }  # fmt: skip
    last = Message("finished", 300, {**ppl(8.0), "valid_ppl_depth_2": 9.5}, depth_front=[point])
    board = Board(Console(file=io.StringIO()), "played", stage.config.objectives[0], 4)
    controller = stage.controller(board)
    play(controller, Message("evaluated", 100, ppl(9.0)), last)
    (trial,) = stage.trials
    assert (trial.value, trial.intermediate_values) == (9.5, {300: 9.5})
    assert stage.ledger.depth_front(trial._trial_id) == [{"step": 300, **point}]
    assert board.best == (0, 9.5)


def test_several_objectives_are_told_together(url: str) -> None:
    objectives = [{"metric": "valid_ppl"}, {"metric": "step_seconds", "direction": "maximize"}]
    stage = Stage(url, objectives=objectives)
    play(
        stage.controller(), Message("evaluated", 100, ppl(9.0)), Message("finished", 300, ppl(8.0))
    )
    (trial,) = stage.trials
    assert trial.values == [8.0, 0.1]
    assert stage.ledger.metrics(trial._trial_id)[100] == ppl(9.0)


def test_a_report_repeated_after_an_adoption_changes_nothing(url: str) -> None:
    stage = Stage(url)
    dead = stage.controller()
    play(dead, Message("evaluated", 100, ppl(9.0)), Message("evaluated", 200, ppl(8.5)))
    stage.lapse()
    heir = stage.controller()
    play(
        heir,
        Message("evaluated", 200, ppl(8.5), first_step=100),
        Message("finished", 300, ppl(8.0), first_step=100),
    )
    (trial,) = stage.trials
    assert trial.intermediate_values == {100: 9.0, 200: 8.5, 300: 8.0}
    assert list(stage.ledger.metrics(trial._trial_id)) == [100, 200, 300]


def test_of_a_training_that_goes_otherwise_the_second_time_one_curve_is_kept(url: str) -> None:
    """No checkpoint could be read, so it began anew; its chance is not the same."""
    stage = Stage(url)
    front = [{
        "depth": 2, "search": "greedy", "layers": [1, 4], "valid_ppl": 9.5,
        "parameters": 3 * 10**9, "seconds_per_token": 1e-5,
    }]  # fmt: skip
    other = [{**front[0], "valid_ppl": 7.7}, {**front[0], "search": "whole"}]
    controller = stage.controller()
    play(
        controller,
        Message("evaluated", 100, ppl(9.0), first_step=0),
        Message("evaluated", 200, ppl(8.0), first_step=0, depth_front=front),
        Message("worker_lost"),
    )
    play(
        controller,
        Message("evaluated", 100, ppl(9.1), first_step=0),
        Message("evaluated", 150, ppl(8.6), first_step=0),
        Message("evaluated", 200, ppl(8.2), first_step=0, depth_front=other),
        Message("finished", 200, ppl(8.2), first_step=0, depth_front=other),
    )
    (trial,) = stage.trials
    assert (trial.value, trial.intermediate_values) == (8.0, {100: 9.0, 200: 8.0})
    assert stage.ledger.metrics(trial._trial_id) == {100: ppl(9.0), 200: ppl(8.0)}
    assert stage.ledger.depth_front(trial._trial_id) == [{"step": 200, **front[0]}]
    assert [a.last_step for a in stage.ledger.trial_attempts(trial._trial_id)] == [200, 200]


def test_a_study_that_failed_too_often_may_be_resumed_when_that_is_mended(url: str) -> None:
    stage = Stage(url, failures={"max_failures": 2}, budget={"trials": 9})
    first = stage.controller()
    play(first, Message("error", detail="boom"))
    play(first, Message("error", detail="boom"))
    assert first.look_for_end()
    stage.lapse()
    second = stage.controller()
    finish(second)
    assert not second.look_for_end()


def test_device_hours_are_counted_while_trials_run_and_over_all_controllers(url: str) -> None:
    stage = Stage(
        url,
        budget={"trials": 9, "device_hours": 1.0},
        resources={"ranks": 2, "concurrent_trials": 2},
    )
    first = stage.controller()
    assert first.next() is not None
    with stage.ledger.sessions() as session:  # as if the two ranks had run for half an hour
        session.execute(sa.text("UPDATE hpo_attempts SET started_at = started_at - 1801"))
        session.commit()
    assert first.next() is None
    spent = "the budget of 1 device-hours is spent (`hpo resume --device-hours` raises it)"
    assert first.gave_up == spent
    stage.lapse()
    second = stage.controller()
    finish(second)  # the orphan
    assert second.next() is None
    assert second.look_for_end()


@pytest.mark.parametrize(
    "said", ["bad byte \0", "bad name caf\udce9", "bell \x07", "x" * 200_000 + " end"]
)
def test_no_text_of_a_training_is_too_strange_for_the_ledger(ledger_url: str, said: str) -> None:
    stage = Stage(ledger_url)
    controller = stage.controller()
    play(controller, Message("error", 10, detail=f"Traceback\nValueError: {said}"))
    (trial,) = stage.trials
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "error")
    (attempt,) = stage.ledger.trial_attempts(trial._trial_id)
    assert attempt.detail is not None
    assert attempt.detail.isprintable() or "\n" in attempt.detail
    assert len(attempt.detail) < 60_000
    assert attempt.detail[-3:] == repr(said.encode("utf-8", "backslashreplace").decode())[-4:-1]
    assert finish(controller) == 1


def test_a_report_that_no_database_takes_ends_its_trial_and_no_other(ledger_url: str) -> None:
    stage = Stage(ledger_url, resources={"concurrent_trials": 2})
    controller = stage.controller()
    assert controller.next() is not None
    assert controller.next() is not None
    assert controller.handle(0, 1, Message("evaluated", 2**70, ppl(9.0), first_step=0)) is False
    assert controller.handle(1, 1, Message("evaluated", 100, ppl(9.0), first_step=0)) is True
    poisoned = stage.trials[0]
    assert (poisoned.state, poisoned.user_attrs["reason"]) == (TrialState.FAIL, "error")
    assert "the ledger does not take what it reported" in poisoned.user_attrs["detail"]
