"""Trials that take down their workers or their controllers each time that they are tried."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState

from hpo.control.attempts import TrialAttempt
from hpo.control.controller import Controller
from hpo.control.losses import losses
from hpo.control.messages import Message
from storage import Attempt, Reason
from tests.hpo.stage import Stage, finish, ppl

LOST, KILLED, STOPPED = Reason.WORKER_LOST, Reason.CONTROLLER_LOST, Reason.STOPPED


def attempt(last_step: int | None, reason: Reason | None) -> Attempt:
    return Attempt(1, 1, 1, 1, 1, 0.0, 1.0, 0, last_step, reason, None)


@pytest.mark.parametrize(
    ("attempts", "lost"),
    [
        ([], 0),
        ([(None, LOST), (0, KILLED)], 2),
        ([(100, LOST), (100, KILLED)], 2),
        ([(100, LOST), (100, LOST), (200, LOST)], 1),  # the last one got further
        ([(100, LOST), (100, STOPPED), (100, LOST)], 2),
        ([(100, LOST), (300, None), (None, KILLED)], 1),  # of its next training
    ],
)
def test_losses_are_counted_since_the_trial_got_any_further(
    attempts: list[tuple[int | None, Reason | None]], lost: int
) -> None:
    assert losses([attempt(*each) for each in attempts]) == lost


def taken(controller: Controller) -> TrialAttempt | None:
    found = controller.next()
    assert found is None or isinstance(found, TrialAttempt)
    return found


def test_a_trial_that_takes_its_controller_down_each_time_is_found_and_ends_alone(
    ledger_url: str,
) -> None:
    stage = Stage(ledger_url, budget={"trials": 3}, resources={"concurrent_trials": 2})
    for number in (1, 2, 3):  # whichever of the two it was
        controller = stage.controller()
        begun = [taken(controller), taken(controller)]
        assert [each and each.attempt.number for each in begun] == [number, number]
        stage.lapse()
    controller = stage.controller()
    innocent = taken(controller)
    assert innocent is not None
    assert innocent.number == 0
    assert taken(controller) is None, "it is tried alone"
    controller.handle(0, 4, Message("evaluated", 100, ppl(9.0), first_step=0))
    guilty = taken(controller)
    assert guilty is not None
    assert guilty.number == 1
    stage.lapse()
    controller = stage.controller()
    again = taken(controller)
    assert again is not None
    assert again.number == 0
    controller.handle(0, 5, Message("finished", 300, ppl(8.0)))
    assert finish(controller) == 2
    assert controller.next() is None
    first, failed, last = stage.trials
    assert (failed.state, failed.user_attrs["reason"]) == (TrialState.FAIL, "controller_lost")
    assert "lost 4 times without getting any further" in failed.user_attrs["detail"]
    assert (first.state, last.state) == (TrialState.COMPLETE, TrialState.COMPLETE)
    assert controller.look_for_end()


def test_a_trial_that_gets_further_each_time_is_tried_without_end(ledger_url: str) -> None:
    stage = Stage(ledger_url, budget={"trials": 1})
    for number in range(1, 7):
        controller = stage.controller()
        begun = taken(controller)
        assert begun is not None
        said = Message("evaluated", 10 * number, ppl(9.0), first_step=0)
        controller.handle(0, number, said)
        stage.lapse()
    assert finish(stage.controller()) == 0
    assert stage.trials[0].state is TrialState.COMPLETE
