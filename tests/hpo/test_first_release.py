"""A database that the first release made, its controller killed: it opens, is read, and goes on.

`first_release.sql` is such a database, dumped: a study of 8 trials, 2 COMPLETE, 5 PRUNED and
the last RUNNING at step 40 of 160, with a checkpoint at 60 that was not reported.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpo.commands.operating import copy
from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.reading import views
from storage import Lease, LeaseHeld, Ledger, Reason, StudyRecord
from tests.databases import empty_database
from trainer.config.settings import ConfigError

DUMP = Path(__file__).with_name("first_release.sql")


@pytest.fixture
def first_release(tmp_path: Path) -> str:
    """The URL of the first release's database, as it left it."""
    file = tmp_path / "first.db"
    with sqlite3.connect(file) as database:
        database.executescript(DUMP.read_text())
    database.close()
    return f"sqlite:///{file}"


def test_it_is_migrated_and_read(first_release: str) -> None:
    ledger = Ledger.open(first_release)
    (listed,) = views.study_list(ledger)
    assert listed == {
        "study": "first", "trials": 8, "budget": 8, "controller": None,
        "states": {"COMPLETE": 2, "PRUNED": 5, "RUNNING": 1},
    }  # fmt: skip
    (best,) = views.best_trials(ledger, "first")
    assert (best["trial"], round(best["values"]["valid_ppl"], 3)) == (1, 194.269)
    shown = views.trial_details(ledger, "first", 7)
    assert (shown["state"], shown["step"], sorted(shown["metrics"])) == ("RUNNING", 40, [20, 40])
    assert shown["run_dir"] == "runs/first/trial-0007"


def taken_over(ledger: Ledger, record: StudyRecord) -> Lease:
    """A lease, after the controller of another machine was watched if there is one."""
    try:
        return ledger.acquire(record)
    except LeaseHeld as held:
        return ledger.acquire(record, watched=held.leases)


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_it_goes_on_with_the_trial_that_ran_where_it_is_or_copied(
    first_release: str, request: pytest.FixtureRequest, tmp_path: Path, backend: str
) -> None:
    url, name = first_release, "first"
    if backend == "postgresql":
        url, name = empty_database(request, backend, tmp_path), "second"
        copy("first", to=url, new_name=name, storage=first_release)
    ledger = Ledger.open(url)
    record = ledger.study(name)
    config = views.config_of(record)
    assert (config.study, record.budget_trials, record.reserved_trials) == (name, 8, 8)
    controller = Controller(ledger, record, config, taken_over(ledger, record), str(tmp_path))
    assignment: Any = controller.next()
    assert (assignment.number, assignment.attempt.number, assignment.reported_step) == (7, 2, 40)
    assert assignment.config["output_dir"] == f"{tmp_path}/{name}/trial-0007"
    for step in (60, 160):
        kind: Any = "evaluated" if step < 160 else "finished"
        controller.handle(7, 2, Message(kind, step, {"valid_ppl": 190.0}, first_step=60))
    assert controller.next() is None
    assert controller.look_for_end()

    trials = optuna.load_study(study_name=name, storage=ledger.storage).trials
    assert Counter(trial.state for trial in trials) == {
        TrialState.COMPLETE: 3, TrialState.PRUNED: 5
    }  # fmt: skip
    last = ledger.trial_attempts(trials[7]._trial_id)
    assert [attempt.reason for attempt in last] == [Reason.CONTROLLER_LOST, None]
    assert trials[7].value == 190.0
    assert [*trials[7].intermediate_values] == [20, 40, 60, 160]


def test_a_copy_that_no_study_could_be_called_is_refused_and_nothing_made(
    first_release: str, tmp_path: Path
) -> None:
    for name in ("../x", "x" * 300):
        with pytest.raises(ConfigError, match="is no name for a study"):
            copy("first", to=f"sqlite:///{tmp_path}/to.db", new_name=name, storage=first_release)
    assert not (tmp_path / "to.db").exists()
