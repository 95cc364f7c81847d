"""A study's teachers in the ledger, on every backend."""

from __future__ import annotations

import time

import optuna
import pytest

from storage import Lease, LeaseLost, Ledger, Reason, StudyRecord, TeacherRecord, TeacherState
from tests.leases import lapse
from tests.storage.studies import MINIMIZE, PLANNED_TEACHER


@pytest.fixture
def ledger(ledger_url: str) -> Ledger:
    return Ledger.open(ledger_url, create=True)


def new_study(ledger: Ledger, *teachers: TeacherRecord) -> StudyRecord:
    return ledger.create_study("tiny", MINIMIZE, ["valid_ppl"], "study: tiny\n", 3, teachers)


def begin(ledger: Ledger, lease: Lease) -> TeacherRecord:
    with ledger.transaction(lease) as tx:
        tx.teachers.begin("0a1b")
    time.sleep(0.01)
    with ledger.transaction(lease) as tx:
        return tx.teachers.record_step("0a1b", 10)


def test_a_study_s_teachers_are_recorded_with_it(ledger: Ledger, ledger_url: str) -> None:
    other = TeacherRecord("ff00", "/cache/teachers/ff00", "steps: 1\n", 1)
    study = new_study(ledger, other, PLANNED_TEACHER)
    assert Ledger.open(ledger_url).teachers(study) == [PLANNED_TEACHER, other]


def test_a_teacher_s_progress_is_read_back_as_it_was_written(
    ledger: Ledger, ledger_url: str
) -> None:
    study = new_study(ledger, PLANNED_TEACHER)
    lease = ledger.acquire(study)
    begun = begin(ledger, lease)
    assert (begun.state, begun.attempts, begun.step) == (TeacherState.TRAINING, 1, 10)
    with ledger.transaction(lease) as tx:
        stopped = tx.teachers.end("0a1b", TeacherState.WAITING, Reason.STOPPED)
    begin(ledger, lease)
    with ledger.transaction(lease) as tx:
        ended = tx.teachers.end("0a1b", TeacherState.TRAINED)
    assert (ended.state, ended.attempts, ended.step) == (TeacherState.TRAINED, 2, 30)
    assert ended.seconds > stopped.seconds > 0
    assert (stopped.reason, ended.reason) == (Reason.STOPPED, None)
    assert Ledger.open(ledger_url).teachers(study) == [ended]


def test_a_teacher_whose_run_is_gone_begins_anew(ledger: Ledger) -> None:
    lease = ledger.acquire(new_study(ledger, PLANNED_TEACHER))
    with ledger.transaction(lease) as tx:
        assert tx.teachers.end("0a1b", TeacherState.REUSED).seconds == 0
    with ledger.transaction(lease) as tx:
        assert tx.teachers.begin("0a1b").step == 0


def test_a_lost_controller_leaves_its_teacher_waiting_and_may_not_write_of_it(
    ledger: Ledger,
) -> None:
    study = new_study(ledger, PLANNED_TEACHER)
    dead = ledger.acquire(study)
    begin(ledger, dead)
    lapse(ledger)
    heir = ledger.acquire(study)
    (left,) = ledger.teachers(study)
    assert (left.state, left.reason) == (TeacherState.WAITING, Reason.CONTROLLER_LOST)
    assert left.step == 10
    assert left.seconds > 0
    with pytest.raises(LeaseLost), ledger.transaction(dead) as tx:
        tx.teachers.end("0a1b", TeacherState.TRAINED)
    assert begin(ledger, heir).attempts == 2
    ledger.release(heir)
    (left,) = ledger.teachers(study)
    assert left.state is TeacherState.WAITING


def test_a_deleted_study_leaves_no_teacher_to_a_new_one(ledger: Ledger) -> None:
    new_study(ledger, PLANNED_TEACHER)
    optuna.delete_study(study_name="tiny", storage=ledger.storage)
    assert ledger.teachers(new_study(ledger)) == []
