"""Trials that another program ends or deletes while the service works at them."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from hpo.control.messages import Message
from storage import Reason
from tests.hpo.stage import Stage, finish, ppl

ENDED = [TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE]


def end_outside(stage: Stage, number: int, state: TrialState = TrialState.FAIL) -> None:
    """End a trial as Optuna's dashboard or any other tool on its tables does."""
    url = stage.ledger.engine.url.render_as_string(hide_password=False)
    other = optuna.storages.get_storage(url)
    trial_id = stage.trials[number]._trial_id
    values = [1.0] if state is TrialState.COMPLETE else None
    other.set_trial_state_values(trial_id, state, values)


@pytest.mark.parametrize("state", ENDED)
def test_a_trial_that_was_ended_outside_stays_so_and_the_others_go_on(
    ledger_url: str, state: TrialState
) -> None:
    stage = Stage(ledger_url, resources={"concurrent_trials": 2}, failures={"max_failures": 1})
    controller = stage.controller()
    ended, other = controller.next(), controller.next()
    assert ended is not None
    assert other is not None
    assert controller.handle(0, 1, Message("evaluated", 100, ppl(9.0), first_step=0))
    assert controller.ended_outside() == []
    end_outside(stage, 0, state)
    assert controller.ended_outside() == [0], "its gang is asked to stop"
    assert not controller.handle(0, 1, Message("evaluated", 200, ppl(8.0)))
    assert controller.handle(1, 1, Message("evaluated", 100, ppl(8.5), first_step=0))
    assert controller.broken is None
    trial = stage.trials[0]
    assert (trial.state, trial.intermediate_values) == (state, {100: 9.0})
    (attempt,) = stage.ledger.trial_attempts(trial._trial_id)
    assert (attempt.reason, attempt.ended_at is not None) == (Reason.OUTSIDE, True)
    assert not controller.handle(0, 1, Message("stopped", 200)), "said again by its gang"
    controller.handle(1, 1, Message("finished", 300, ppl(8.0)))
    assert [finish(controller) for _ in range(2)] == [2, 3], "it counts as no failure"
    assert controller.next() is None
    assert controller.look_for_end()
    assert not controller.failing


def test_a_finished_training_of_a_trial_that_was_failed_outside_leaves_it_failed(
    ledger_url: str,
) -> None:
    stage = Stage(ledger_url)
    controller = stage.controller()
    assert controller.next() is not None
    end_outside(stage, 0)
    assert not controller.handle(0, 1, Message("finished", 300, ppl(5.0), first_step=0))
    assert stage.trials[0].state is TrialState.FAIL
    assert finish(controller) == 1


def test_an_orphan_that_was_ended_outside_is_not_adopted(ledger_url: str) -> None:
    stage = Stage(ledger_url)
    assert stage.controller().next() is not None
    end_outside(stage, 0)
    stage.lapse()
    heir = stage.controller()
    assert stage.ledger.waiting(stage.record) == []
    assert [finish(heir) for _ in range(3)] == [1, 2, 3]
    assert heir.next() is None
    assert heir.look_for_end()


def test_a_trial_that_was_ended_outside_while_it_waited_is_not_begun_again(
    ledger_url: str,
) -> None:
    stage = Stage(ledger_url, pruner={"name": "parked_halving", "min_steps": 100})
    controller = stage.controller()
    assert controller.next() is not None
    assert not controller.handle(0, 1, Message("evaluated", 100, ppl(9.0), first_step=0))
    assert [trial.parked for trial in stage.ledger.waiting(stage.record)] == [True]
    end_outside(stage, 0)
    numbers = []
    for _ in range(20):
        attempt = controller.next()
        if attempt is None:
            break
        job, number = attempt.assignment.job, attempt.assignment.attempt
        numbers.append(job)
        said = Message("evaluated", 100, ppl(5.0), first_step=0)
        if number > 1 or controller.handle(job, number, said):
            controller.handle(job, number, Message("finished", 300, ppl(4.0)))
    assert 0 not in numbers
    assert {1, 2, 3} <= {*numbers}
    assert controller.look_for_end()
    assert controller.broken is None
    assert stage.trials[0].state is TrialState.FAIL


def test_a_trial_that_was_ended_outside_while_the_database_was_away_stays_so(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(ledger_url, resources={"concurrent_trials": 2})
    controller = stage.controller()
    for _ in range(2):
        assert controller.next() is not None
    with monkeypatch.context() as away:
        away.setattr(controller, "_write", _refuse)
        for number in (0, 1):
            assert controller.handle(number, 1, Message("evaluated", 100, ppl(9.0), first_step=0))
    assert controller.waits_for_database
    end_outside(stage, 0)
    monkeypatch.setattr(type(controller._database), "due", True)
    controller.mend()
    assert not controller.waits_for_database
    assert (stage.trials[0].state, stage.trials[0].intermediate_values) == (TrialState.FAIL, {})
    assert stage.trials[1].intermediate_values == {100: 9.0}


def _refuse(*_: object, **__: object) -> bool:
    import sqlalchemy as sa

    raise sa.exc.OperationalError("INSERT", {}, Exception("the server closed the connection"))
