"""Points that wait to be tried, on every backend."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from storage import BudgetSpent, Ledger, Point, StudyRecord
from storage.points import known_params

HAND = {"by": "hand"}


def new_study(ledger: Ledger, *points: Point) -> StudyRecord:
    minimize = [StudyDirection.MINIMIZE]
    return ledger.create_study("tiny", minimize, ["valid_ppl"], "study: tiny\n", 3, (), points)


def trials(ledger: Ledger) -> list[FrozenTrial]:
    return optuna.load_study(study_name="tiny", storage=ledger.storage).trials


def at(*values: float) -> list[Point]:
    return [Point({"lr": value}, HAND) for value in values]


@pytest.fixture
def ledger(ledger_url: str) -> Ledger:
    return Ledger.open(ledger_url, create=True)


def test_a_studys_points_are_recorded_with_it_in_order(ledger: Ledger) -> None:
    record = new_study(ledger, Point({"lr": 0.25}, {"study": "old", "trial": 7}), *at(0.5))
    assert [known_params(trial) for trial in trials(ledger)] == [{"lr": 0.25}, {"lr": 0.5}]
    assert trials(ledger)[0].user_attrs["origin"] == {"study": "old", "trial": 7}
    assert {trial.state for trial in trials(ledger)} == {TrialState.WAITING}
    assert ledger.waiting_trials(record) == 2
    assert record.reserved_trials == 0, "they are in no budget before they are asked for"
    assert ledger.waiting(record) == []


def test_without_its_points_there_is_no_study(ledger: Ledger) -> None:
    unstorable = Point({"lr": {0.5}}, HAND)  # a set is no JSON
    with pytest.raises(TypeError):
        new_study(ledger, *at(0.25), unstorable)
    assert optuna.get_all_study_names(ledger.storage) == []
    assert ledger.studies() == []


def test_points_are_enqueued_all_or_none(ledger: Ledger, ledger_url: str) -> None:
    record = new_study(ledger)
    with pytest.raises(TypeError):
        ledger.enqueue(record, [*at(0.25), Point({"lr": {0.5}}, HAND)])
    assert trials(Ledger.open(ledger_url)) == []


def test_a_running_controller_takes_what_another_process_enqueues_up_to_its_budget(
    ledger: Ledger, ledger_url: str
) -> None:
    lease = ledger.acquire(new_study(ledger))
    study = optuna.load_study(study_name="tiny", storage=ledger.storage)

    def ask() -> float:
        with ledger.transaction(lease) as transaction:
            transaction.reserve_trial()
            trial = study.ask()
            transaction.begin_attempt(trial._trial_id, devices=1)
            return trial.suggest_float("lr", 0.0, 1.0)

    ask()
    other = Ledger.open(ledger_url)
    assert other.enqueue(other.study("tiny"), at(0.25, 0.5, 0.75)) == [1, 2, 3]
    assert [ask(), ask()] == [0.25, 0.5]
    with pytest.raises(BudgetSpent):
        ask()
    assert [trial.state.name for trial in trials(other)] == ["RUNNING"] * 3 + ["WAITING"]
    assert other.waiting_trials(other.study("tiny")) == 1


def test_many_who_enqueue_at_once_get_a_number_each(ledger: Ledger) -> None:
    record = new_study(ledger)
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda n: ledger.enqueue(record, at(n / 16, n / 32)), range(8)))
    assert sorted(number for pair in numbers for number in pair) == list(range(16))
    assert all(second == first + 1 for first, second in numbers), "no other came in between"
