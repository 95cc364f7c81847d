"""SQLite gives the ids of deleted rows out again; who held the old ones writes nothing there."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.study import StudyDirection

from storage import Gone, LeaseLost, Ledger, StudyNotFound, StudyRecord


def create(ledger: Ledger, name: str) -> StudyRecord:
    return ledger.create_study(name, [StudyDirection.MINIMIZE], ["valid_ppl"], "study: x", 3)


@pytest.mark.parametrize("name", ["mine", "another"])
def test_a_controller_of_a_deleted_study_writes_nothing_into_the_one_that_got_its_ids(
    tmp_path: Path, name: str
) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/hpo.db", create=True)
    record = create(ledger, "mine")
    old = ledger.acquire(record)
    optuna.delete_study(study_name="mine", storage=ledger.storage)
    other = create(ledger, name)
    new = ledger.acquire(other)
    assert (other.study_id, new.controller_id) == (record.study_id, old.controller_id)
    with pytest.raises(LeaseLost), ledger.transaction(old) as transaction:
        transaction.reserve_trial()
    assert ledger.study(name).reserved_trials == 0
    ledger.release(old)
    assert [c.alive for c in ledger.controllers(other)] == [True], "its lease is not given back"
    with ledger.transaction(new) as transaction:
        transaction.reserve_trial()
    assert ledger.study(name).reserved_trials == 1
    with pytest.raises(StudyNotFound, match="study mine has been deleted"):
        ledger.acquire(record, join=True)
    with pytest.raises(StudyNotFound):
        ledger.acquire(record)


def test_a_study_starts_after_optunas_own_command_has_deleted_the_newest(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    ledger = Ledger.open(url, create=True)
    lease = ledger.acquire(create(ledger, "mine"))
    with ledger.transaction(lease) as transaction:
        transaction.reserve_trial()
        trial = optuna.load_study(study_name="mine", storage=ledger.storage).ask()
        transaction.begin_attempt(trial._trial_id, devices=1)
    optuna.delete_study(study_name="mine", storage=url)  # where foreign keys are not enforced
    record = create(Ledger.open(url), "mine")
    assert (record.reserved_trials, Ledger.open(url).controllers(record)) == (0, [])
    again = Ledger.open(url).acquire(record)
    assert Ledger.open(url).open_attempts(record) == []
    with pytest.raises(LeaseLost), ledger.transaction(lease):
        pass
    assert again.token != lease.token


def test_what_another_program_has_deleted_is_told_as_a_ledger_s_error(ledger_url: str) -> None:
    ledger = Ledger.open(ledger_url, create=True)
    study = create(ledger, "mine")
    trial_id = ledger.storage.create_new_trial(study.study_id)
    optuna.delete_study(study_name=study.name, storage=ledger.storage)
    for read in (
        lambda: ledger.storage.get_study_user_attrs(study.study_id),
        lambda: ledger.storage.get_trial(trial_id),
        lambda: ledger.storage.create_new_trial(study.study_id),
        lambda: ledger.storage.set_trial_user_attr(trial_id, "key", 1),
    ):
        with pytest.raises(Gone, match="^another program has deleted the study, or a trial of it$"):
            read()
