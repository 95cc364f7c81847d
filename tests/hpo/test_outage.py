"""The database or the disk away for a while; attempts are played."""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.orm import Session

from hpo.control import outage
from hpo.control.attempts import TrialAttempt
from hpo.control.controller import Controller
from hpo.control.messages import Message
from storage import Reason, in_one_line
from tests.hpo.grown import Grown
from tests.hpo.stage import Stage, finish, ppl


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.database.BUSY_SECONDS", 0.01)
    monkeypatch.setattr(outage, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(outage, "LONGEST_SECONDS", 0.0)


@contextmanager
def away(folder: Path) -> Iterator[None]:
    """No other process can write to the ledger, nor read it."""
    connection = sqlite3.connect(folder / "hpo.db")
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.rollback()
        connection.close()


def stage_in(folder: Path, **changes: Any) -> Stage:
    return Stage(f"sqlite:///{folder}/hpo.db", **changes)


def test_trainings_go_on_and_what_they_say_is_written_in_order_when_it_is_back(
    tmp_path: Path,
) -> None:
    stage = stage_in(tmp_path, budget={"trials": 2}, resources={"concurrent_trials": 2})
    controller = stage.controller()
    assert controller.next() is not None
    with away(tmp_path):
        assert controller.handle(0, 1, Message("evaluated", 100, ppl(9.0), first_step=0))
        assert controller.handle(0, 1, Message("evaluated", 200, ppl(8.0), first_step=0))
        controller.handle(0, 1, Message("finished", 300, ppl(7.0), first_step=0))
        controller.mend()
        assert controller.waits_for_database
        assert controller.next() is None
        assert not controller.look_for_end()
    assert stage.trials[0].intermediate_values == {}
    controller.mend()
    assert not controller.waits_for_database
    (trial,) = stage.trials
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 7.0)
    assert trial.intermediate_values == {100: 9.0, 200: 8.0, 300: 7.0}
    assert list(stage.ledger.metrics(trial._trial_id)) == [100, 200, 300]
    assert finish(controller) == 1


def test_a_trial_that_was_to_be_stopped_meanwhile_is_judged_at_its_next_evaluation(
    tmp_path: Path,
) -> None:
    stage = stage_in(tmp_path, pruner={"name": "median", "startup_trials": 1})
    controller = stage.controller()
    assert controller.next() is not None
    for step in (100, 200):
        controller.handle(0, 1, Message("evaluated", step, ppl(5.0), first_step=0))
    controller.handle(0, 1, Message("finished", 300, ppl(4.0), first_step=0))
    assert controller.next() is not None
    with away(tmp_path):
        assert controller.handle(1, 1, Message("evaluated", 100, ppl(50.0), first_step=0))
    controller.mend()
    assert stage.trials[1].state is TrialState.RUNNING, "its gang is at work"
    assert not controller.handle(1, 1, Message("evaluated", 200, ppl(50.0), first_step=0))
    assert stage.trials[1].state is TrialState.PRUNED


def test_past_the_limit_the_controller_leaves_with_all_as_the_ledger_has_it(
    tmp_path: Path,
) -> None:
    stage = stage_in(tmp_path, failures={"outage_seconds": 1e-9})
    controller = stage.controller()
    assert controller.next() is not None
    with away(tmp_path):
        controller.handle(0, 1, Message("evaluated", 100, ppl(9.0), first_step=0))
        assert controller.broken is None
        controller.mend()
        assert controller.broken is not None
        assert controller.stopping
        assert controller.look_for_end()
    assert stage.trials[0].state is TrialState.RUNNING


class LostAnswer:
    """The database commits, and is gone before it can say so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        commit = Session.commit

        def commit_and_lose(session: Session) -> None:
            commit(session)
            monkeypatch.setattr(Session, "commit", commit)
            raise sa.exc.OperationalError("COMMIT", {}, Exception("the connection was lost"))

        monkeypatch.setattr(Session, "commit", commit_and_lose)


def test_an_end_whose_commit_was_not_confirmed_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_in(tmp_path)
    controller = stage.controller()
    assert controller.next() is not None
    LostAnswer(monkeypatch)
    controller.handle(0, 1, Message("finished", 300, ppl(7.0), first_step=0))
    assert controller.waits_for_database
    controller.mend()
    assert controller.broken is None
    assert stage.trials[0].value == 7.0
    assert finish(controller) == 1


def test_a_trial_whose_creation_was_not_confirmed_is_run_as_its_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_in(tmp_path)
    controller = stage.controller()
    LostAnswer(monkeypatch)
    assert controller.next() is None
    controller.mend()
    adopted = controller.next()
    assert adopted is not None
    assert (adopted.number, adopted.attempt.number) == (0, 2)
    assert stage.ledger.study("played").reserved_trials == 1


def test_a_transaction_that_was_not_written_leaves_no_trial_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_in(tmp_path)
    controller = stage.controller()
    commit = Session.commit

    def lose(session: Session) -> None:
        monkeypatch.setattr(Session, "commit", commit)
        raise sa.exc.OperationalError("COMMIT", {}, Exception("the connection was lost"))

    monkeypatch.setattr(Session, "commit", lose)
    assert controller.next() is None
    controller.mend()
    assert [finish(controller) for _ in range(4)] == [0, 1, 2, 3]


def test_a_full_disk_pauses_the_study_and_counts_as_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_in(tmp_path, failures={"max_failures": 1, "max_retries": 0})
    controller = paused(stage, monkeypatch)
    assert controller.next() is None
    assert not controller.look_for_end()
    (trial,) = stage.trials
    attempts = stage.ledger.trial_attempts(trial._trial_id)
    assert (trial.state, attempts[0].reason) == (TrialState.RUNNING, Reason.DISK)
    monkeypatch.setattr("hpo.control.outage.check_disk", lambda folder: None)
    again = controller.next()
    assert again is not None
    assert (again.number, again.attempt.number) == (0, 2)
    controller.handle(0, 2, Message("finished", 300, ppl(7.0), first_step=100))
    assert stage.trials[0].state is TrialState.COMPLETE


def test_a_disk_that_stays_full_makes_the_controller_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_in(tmp_path, failures={"outage_seconds": 1e-9})
    controller = paused(stage, monkeypatch)
    assert controller.next() is None
    assert controller.look_for_end()
    assert "No space left" in str(controller.broken)


def paused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Controller:
    """A controller whose first trial met a full disk."""

    def full(place: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hpo.control.outage.check_disk", full)
    controller = stage.controller()
    assert controller.next() is not None
    assert not controller.handle(0, 1, Message("disk", 100, detail="OSError: No space left"))
    return controller


def test_a_disk_is_checked_by_writing_to_it(tmp_path: Path) -> None:
    outage.check_disk(str(tmp_path / "study"))
    assert list((tmp_path / "study").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        outage.check_disk(str(tmp_path / "file"))


def test_a_disk_that_answers_but_has_no_room_is_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_in(tmp_path, failures={"outage_seconds": 0.2})
    lease = stage.ledger.acquire(stage.record)
    controller = Controller(stage.ledger, stage.record, stage.config, lease, str(tmp_path / "runs"))
    monkeypatch.setattr(outage, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(outage, "LONGEST_SECONDS", 0.1)
    deadline = time.monotonic() + 30
    while not controller.look_for_end() and time.monotonic() < deadline:
        assignment = controller.next()
        if assignment is not None:
            assert isinstance(assignment, TrialAttempt)
            number = assignment.attempt.number
            controller.handle(0, number, Message("disk", 10, detail="OSError: No space left"))
    assert "No space left" in str(controller.broken)
    attempts = stage.ledger.trial_attempts(stage.trials[0]._trial_id)
    assert 2 <= len(attempts) < 20
    assert {attempt.reason for attempt in attempts} == {Reason.DISK}


def test_a_database_that_answers_but_takes_no_trial_is_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_in(tmp_path, failures={"outage_seconds": 0.2})
    controller = stage.controller()

    def refuse(transaction: Any) -> None:
        raise sa.exc.OperationalError("INSERT", {}, Exception("no space left on device"))

    monkeypatch.setattr(controller._attempts, "first", refuse)
    deadline = time.monotonic() + 30
    while controller.broken is None and time.monotonic() < deadline:
        assert controller.next() is None
        controller.mend()
    assert "no space left" in in_one_line(controller.broken or Exception())
    assert "SQL" not in in_one_line(controller.broken or Exception())


def test_a_member_of_a_population_waits_for_the_others_meanwhile(tmp_path: Path) -> None:
    """Trained further, it would have let go of the checkpoint that others go on from."""
    stage = Grown(tmp_path)
    controller = stage.controller()
    member = controller.next()
    assert isinstance(member, TrialAttempt)
    with away(tmp_path):
        assert controller.handle(0, 1, Message("evaluated", 50, ppl(9.0), first_step=0))
        assert not controller.handle(0, 1, Message("evaluated", 100, ppl(8.0), first_step=0))
    controller.mend()
    (waiting,) = stage.ledger.waiting(stage.record)
    assert (waiting.number, waiting.parked) == (0, True)
    assert stage.trials[0].intermediate_values == {50: 9.0, 100: 8.0}
