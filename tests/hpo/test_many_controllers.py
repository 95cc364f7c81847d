"""Several controllers of one study, on real ledgers; attempts are played."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState

from benchmarks.postgres import PostgresServer
from hpo.control.controller import Controller
from hpo.control.messages import Message
from storage import LeaseLost, Ledger, Reason
from tests.hpo.stage import Stage, finish, ppl
from tests.leases import lapse

ROOT = Path(__file__).parents[2]


def joined(stage: Stage) -> Controller:
    """One controller more, with a ledger of its own as another process has."""
    ledger = Ledger.open(stage.ledger.url)
    lease = ledger.acquire(stage.record, join=True)
    return Controller(ledger, stage.record, stage.config, lease, "/runs")


class TestTwoControllers:
    def test_share_one_budget(self, ledger_url: str) -> None:
        stage = Stage(ledger_url)
        one, other = joined(stage), joined(stage)
        numbers = [finish(each) for each in (one, other, other, one)]
        assert numbers == [0, 1, 2, 3]
        assert one.next() is None
        assert other.next() is None
        assert one.look_for_end()
        assert other.look_for_end()
        assert len({trial.params["optim.lr"] for trial in stage.trials}) == 4

    def test_wait_for_each_other_s_trials_to_end(self, ledger_url: str) -> None:
        stage = Stage(ledger_url, budget={"trials": 1})
        one, other = joined(stage), joined(stage)
        assignment = one.next()
        assert assignment is not None
        assert other.next() is None
        assert not other.look_for_end(), "it may come to be its own"
        one.handle(0, 1, Message("finished", 300, ppl(5.0)))
        assert other.look_for_end()

    def test_go_on_with_what_one_of_them_left(self, ledger_url: str) -> None:
        stage = Stage(ledger_url)
        one, other = joined(stage), joined(stage)
        left = one.next()
        assert left is not None
        one.handle(0, 1, Message("evaluated", 100, ppl(9.0), first_step=0))
        one.handle(0, 1, Message("stopped", 120))
        adopted = other.next()
        assert adopted is not None
        assert (adopted.number, adopted.attempt.number, adopted.reported_step) == (0, 2, 100)
        assert adopted.params == left.params

    def test_take_the_trials_of_one_that_was_paused_which_then_drops_them(
        self, ledger_url: str
    ) -> None:
        stage = Stage(ledger_url)
        paused, other = joined(stage), joined(stage)
        assert paused.next() is not None
        lapse(stage.ledger, paused.leased.lease)
        with other.leased.transaction() as transaction:  # as its heartbeat does
            transaction.reap()
        adopted = other.next()
        assert adopted is not None
        assert (adopted.number, adopted.attempt.number) == (0, 2)
        assert paused.handle(0, 1, Message("finished", 300, ppl(1.0))) is False
        assert isinstance(paused.broken, LeaseLost)
        assert paused.next() is None
        assert stage.trials[0].state is TrialState.RUNNING
        other.handle(0, 2, Message("finished", 300, ppl(2.0)))
        assert stage.trials[0].value == 2.0

    def test_see_each_other_s_curves_when_they_prune(self, ledger_url: str) -> None:
        pruner = {"name": "asha", "metric": "valid_ppl", "min_steps": 100, "reduction_factor": 2}
        stage = Stage(ledger_url, pruner=pruner)
        one, other = joined(stage), joined(stage)
        for controller, value, goes_on in ((one, 5.0, True), (other, 9.0, False)):
            assignment = controller.next()
            assert assignment is not None
            message = Message("evaluated", 100, ppl(value), first_step=0)
            assert controller.handle(assignment.number, 1, message) is goes_on

    def test_hold_trials_against_what_each_other_completed_since_they_last_looked(
        self, ledger_url: str
    ) -> None:
        stage = Stage(ledger_url, pruner={"name": "median", "startup_trials": 1})
        one, other = joined(stage), joined(stage)
        bad, good = other.next(), one.next()
        assert bad is not None
        assert good is not None
        assert other.handle(bad.number, 1, Message("evaluated", 100, ppl(50.0), first_step=0))
        one.handle(good.number, 1, Message("evaluated", 100, ppl(5.0), first_step=0))
        one.handle(good.number, 1, Message("finished", 300, ppl(4.0)))
        assert other.handle(bad.number, 1, Message("evaluated", 200, ppl(49.0))) is False

    def test_promote_each_other_s_parked_trials_once(self, ledger_url: str) -> None:
        pruner = {"name": "parked_halving", "min_steps": 100, "reduction_factor": 2}
        stage = Stage(ledger_url, pruner=pruner, budget={"trials": 2})
        one, other = joined(stage), joined(stage)
        for controller, value in ((one, 5.0), (other, 9.0)):
            assignment = controller.next()
            assert assignment is not None
            message = Message("evaluated", 100, ppl(value), first_step=0)
            controller.handle(assignment.number, 1, message)
        promoted = other.next()
        assert promoted is not None
        assert (promoted.number, promoted.attempt.number) == (0, 2), "trial 0 was the other's"
        assert one.next() is None
        other.handle(0, 2, Message("finished", 300, ppl(4.0)))
        assert other.next() is None
        states = Counter(trial.state.name for trial in stage.trials)
        assert states == {"COMPLETE": 1, "PRUNED": 1}


PLAYER = """
import os, signal, sys, time
from pathlib import Path
from benchmarks.postgres import PostgresServer
from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.study.load import config_of
from storage import LeaseLost, Ledger

ledger = Ledger.open(sys.argv[1])
record = ledger.study("played")
pauses = sys.argv[2] == "pauses"
print("ready", flush=True)
while True:
    lease = ledger.acquire(record, seconds=1.0, join=True)
    controller = Controller(ledger, record, config_of(record), lease, "/runs")
    with ledger.heartbeat(lease, controller.report_error):
        while not controller.look_for_end():
            assignment = controller.next()
            if assignment is None:
                time.sleep(0.05)
                continue
            for step in (100, 200, 300):
                time.sleep(0.02)
                if pauses and assignment.number > 15:
                    pauses = False
                    os.kill(os.getpid(), signal.SIGSTOP)
                kind = "evaluated" if step < 300 else "finished"
                message = Message(kind, step, {"valid_ppl": 1000.0 / step}, first_step=0)
                controller.handle(assignment.number, assignment.attempt.number, message)
    if not isinstance(controller.broken, LeaseLost):
        sys.exit(0 if controller.broken is None else str(controller.broken))
    print("lost its lease", flush=True)
"""


def test_four_controllers_of_which_one_is_killed_and_one_paused_run_exactly_sixty_trials(
    postgres_server: PostgresServer,
) -> None:
    url = postgres_server.new_database()
    sampler = {"name": "random", "seed": 0}
    stage = Stage(url, budget={"trials": 60}, sampler=sampler)
    players = [
        subprocess.Popen(
            [sys.executable, "-c", PLAYER, url, role],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for role in ("plays", "pauses", "plays", "plays")
    ]
    killed, paused, *others = players
    for player in players:
        assert player.stdout is not None
        assert player.stdout.readline() == "ready\n"
    while len(stage.trials) < 15:
        time.sleep(0.05)
    killed.kill()
    while not {killed.pid, paused.pid} <= lost(stage):
        time.sleep(0.05)
    os.kill(paused.pid, signal.SIGCONT)
    for player in (paused, *others):
        assert player.wait(timeout=120) == 0
    killed.wait()
    assert paused.stdout is not None
    assert "lost its lease" in paused.stdout.read(), "it was paused for longer than its lease"
    trials = stage.trials
    assert [trial.number for trial in trials] == list(range(60))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    attempts = stage.ledger.attempts(stage.record)
    assert {tuple(stage.ledger.metrics(trial._trial_id)) for trial in trials} == {(100, 200, 300)}
    reasons = [a.reason for each in attempts.values() for a in each if a.reason is not None]
    assert Reason.CONTROLLER_LOST in reasons
    assert set(reasons) == {Reason.CONTROLLER_LOST}
    assert stage.ledger.study("played").reserved_trials == 60


def lost(stage: Stage) -> set[int]:
    """Processes whose trials were taken over."""
    controllers = stage.ledger.controllers(stage.record)
    return {controller.pid for controller in controllers if controller.state == "lost"}


@pytest.mark.parametrize(("lost", "seconds"), [(1, 1.0), (2, 4.0), (3, 16.0), (9, 300.0)])
def test_a_retry_waits_longer_each_time(
    lost: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpo.control import judge

    monkeypatch.setattr(judge, "FIRST_BACKOFF_SECONDS", 1.0)
    assert judge.backoff(lost) == seconds


def test_a_lost_trial_is_not_begun_before_it_is_due(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.control.judge.FIRST_BACKOFF_SECONDS", 60.0)
    stage = Stage(ledger_url, budget={"trials": 1})
    controller = joined(stage)
    assert controller.next() is not None
    controller.handle(0, 1, Message("worker_lost", detail="rank 1 died"))
    assert controller.next() is None
    assert not controller.look_for_end()
    (waiting,) = stage.ledger.waiting(stage.record)
    assert 50 < waiting.due_in <= 60
