"""Trials read by plain SELECTs are those that Optuna reads."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from storage import Ledger
from storage import trials as storage_trials
from storage.trials import TrialStorage


@pytest.fixture
def both(ledger_url: str) -> tuple[RDBStorage, TrialStorage]:
    """Optuna's storage and ours on a study with something of everything, and on another study."""
    ledger = Ledger.open(ledger_url, create=True)
    study = optuna.create_study(storage=ledger.storage, directions=["minimize", "maximize"])
    other = optuna.create_study(storage=ledger.storage)
    study.enqueue_trial({"x": 0.5}, user_attrs={"origin": {"by": "hand"}})
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, None):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.suggest_categorical("y", ["a", None, 3])
        trial.set_user_attr("where", {"nested": [1, 2]})
        trial.set_constraint("small", -1.0)
        for step, value in enumerate((1.5, math.inf, -math.inf)):
            ledger.storage.set_trial_intermediate_value(trial._trial_id, step, value)
        other.ask().suggest_float("x", 0, 2)
        if state is not None:
            values = [math.inf, -2.5] if state is TrialState.COMPLETE else None
            study.tell(trial, values, state=state)
    study.enqueue_trial({"x": 0.7})
    url = ledger_url.replace("postgresql:", "postgresql+psycopg:")
    return RDBStorage(url), TrialStorage(url)


@pytest.mark.parametrize("few", [0, 1_000])
def test_a_study_is_read_as_optuna_reads_it(
    both: tuple[RDBStorage, TrialStorage], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_trials, "FEW", few)  # the rows of more are found in another way
    optunas, ours = (storage.get_all_trials(1) for storage in both)
    assert ours == optunas
    assert [trial.state.name for trial in ours] == [
        "COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING",
    ]  # fmt: skip


def test_what_is_new_or_named_is_read_and_no_more(both: tuple[RDBStorage, TrialStorage]) -> None:
    running = next(t._trial_id for t in both[0].get_all_trials(1) if t.state is TrialState.RUNNING)
    for included, newer_than in (({running}, running), (set(), running), ({running}, running + 9)):
        optunas, ours = (s._get_trials(1, None, included, newer_than) for s in both)
        assert ours == optunas
    waiting = (TrialState.WAITING,)
    assert both[1].get_all_trials(1, states=waiting) == both[0].get_all_trials(1, states=waiting)


def test_a_trial_that_is_not_there_is_missed(both: tuple[RDBStorage, TrialStorage]) -> None:
    assert both[1].get_trial(1) == both[0].get_trial(1)
    with pytest.raises(KeyError):
        both[1].get_trial(10**6)
