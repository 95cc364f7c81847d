"""Copying a study, between each pair of backends: all of it or nothing."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from storage import LeaseHeld, Ledger, LedgerError, Point, Reason, StudyExists, StudyRecord
from storage.copying import copy_study
from tests.databases import empty_database
from tests.leases import lapse
from tests.storage.studies import MINIMIZE, PLANNED_TEACHER, new_study, run_trial

BACKENDS = ("sqlite", "postgresql")
VERSIONS = {"version_info", "alembic_version", "hpo_alembic_version"}  # not of a study


def full_study(ledger: Ledger) -> StudyRecord:
    """A study that has a row in every table: its controller is dead, and left a trial open."""
    run_trial(ledger, ledger.acquire(new_study(ledger, "elsewhere")))  # ids begin later than at 1
    study = ledger.create_study(
        "full", MINIMIZE, ["valid_ppl"], "study: full\n", 9, [PLANNED_TEACHER]
    )
    lease = ledger.acquire(study)
    loaded = optuna.load_study(study_name="full", storage=ledger.storage)
    loaded.set_user_attr("note", "ü")
    with ledger.transaction(lease) as tx:
        tx.teachers.begin(PLANNED_TEACHER.key)
        tx.reserve_trial()
        trial = loaded.ask()
        trial.suggest_float("lr", 0.0, 1.0)
        trial.suggest_categorical("policy", ["none", "linear"])
        attempt = tx.begin_attempt(trial._trial_id, devices=2)
        tx.record_metrics(attempt, 10, {"valid_ppl": 0.1 + 0.2, "parameters": 3 * 10**9})
        point = {"depth": 2, "search": "greedy", "layers": [1, 4], "valid_ppl": 9.5,
                 "parameters": 3 * 10**9, "seconds_per_token": 1e-5}  # fmt: skip
        tx.record_depth_front(attempt, 10, [point])
        tx.record_result(attempt, 0, {"valid_ppl": 1 / 3})
        trial.report(math.inf, 10)
        trial.set_user_attr("run_dir", "runs/full/trial-0000")
        loaded.tell(trial, 1 / 3)
        tx.end_attempt(attempt, Reason.ERROR, "two\nlines")
    with ledger.transaction(lease) as tx:
        tx.reserve_trial()
        orphan = loaded.ask()
        tx.begin_attempt(orphan._trial_id, devices=2)
        parked = loaded.ask()
        tx.wait(parked._trial_id, parked=True)
    with ledger.sessions() as session:  # as Optuna's own heartbeat leaves it, and NSGA-II
        heartbeat = "INSERT INTO trial_heartbeats (trial_id, heartbeat) VALUES (:id, :at)"
        at = sa.bindparam("at", datetime.now(), sa.DateTime())
        session.execute(sa.text(heartbeat).bindparams(at, id=trial._trial_id))
        session.commit()
    ledger.storage.set_study_system_attr(
        study.study_id, "NSGAIISampler:parent:1", [orphan._trial_id, trial._trial_id]
    )
    ledger.enqueue(study, [Point({"lr": 0.5}, {"by": "hand"})])
    lapse(ledger)
    return ledger.study("full")


def said(ledger: Ledger, name: str) -> dict[str, Any]:
    """All that readers are told of a study, without the ids of its database."""
    study = ledger.study(name)
    trials = optuna.load_study(study_name=name, storage=ledger.storage).trials
    numbers = {trial._trial_id: trial.number for trial in trials}
    attrs = ledger.storage.get_study_system_attrs(study.study_id)
    parents = {k: [numbers[i] for i in v] for k, v in attrs.items() if ":parent:" in k}
    return {
        "study": replace(study, study_id=0),
        "user_attrs": ledger.storage.get_study_user_attrs(study.study_id),
        "system_attrs": {**attrs, **parents},
        "directions": ledger.storage.get_study_directions(study.study_id),
        "trials": [
            {k: v for k, v in vars(t).items() if k not in ("_trial_id", "_distributions")}
            for t in trials
        ],
        "distributions": [trial.distributions for trial in trials],
        "attempts": {
            numbers[trial_id]: [replace(a, attempt_id=0, trial_id=0, controller_id=0) for a in all_]
            for trial_id, all_ in ledger.attempts(study).items()
        },
        "metrics": [ledger.metrics(trial_id) for trial_id in numbers],
        "results": [ledger.results(trial_id) for trial_id in numbers],
        "depth_fronts": [ledger.depth_front(trial_id) for trial_id in numbers],
        "waiting": {(numbers[each.trial_id], each.parked) for each in ledger.waiting(study)},
        "teachers": ledger.teachers(study),
        "controllers": [
            (c.host, c.pid, c.started_at, c.seen_at) for c in ledger.controllers(study)
        ],
    }


def copied(source: Ledger, to: str) -> dict[str, int]:
    study = source.study("full")
    return copy_study(source, study, to, name=study.name, document=study.document)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("made") / "full.db"
    full_study(Ledger.open(f"sqlite:///{file}", create=True))
    return file


@pytest.fixture
def ledger(made: Path, tmp_path: Path) -> Ledger:
    """One that holds the full study, in `from.db`."""
    with sqlite3.connect(made) as source, sqlite3.connect(tmp_path / "from.db") as target:
        source.backup(target)
    return Ledger.open(f"sqlite:///{tmp_path}/from.db")


@pytest.mark.parametrize("to", BACKENDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copy_says_all_that_the_study_says(
    request: pytest.FixtureRequest, backend: str, to: str, tmp_path: Path
) -> None:
    if backend == "sqlite":
        source: Ledger = request.getfixturevalue("ledger")
    else:
        source = Ledger.open(empty_database(request, backend, tmp_path), create=True)
        full_study(source)
    url = empty_database(request, to, tmp_path / "to.db")
    before = said(source, "full")
    new_study(Ledger.open(url, create=True), "another")
    counts = copied(source, url)
    assert said(source, "full") == before, "the source is only read"
    target = Ledger.open(url)
    after = said(target, "full")
    (lost,), (teacher,) = after["attempts"][1], after["teachers"]
    assert (lost.reason, lost.ended_at) == (Reason.CONTROLLER_LOST, before["controllers"][0][3])
    assert (teacher.state, teacher.reason) == ("waiting", Reason.CONTROLLER_LOST)
    closed = {
        "attempts": {**before["attempts"], 1: [lost]},
        "teachers": [teacher],
        "waiting": {*before["waiting"], (1, False)},
    }
    assert after == {**before, **closed}
    assert [c.state for c in target.controllers(target.study("full"))] == ["lost"]

    with target.sessions() as session:
        tables = set(sa.inspect(session.connection()).get_table_names()) - VERSIONS
    assert counts.keys() == tables, "every table is copied: its foreign keys lead to the study"
    assert min(counts.values()) > 0, f"full_study has a row in every table: {counts}"


def test_a_copied_study_goes_on_and_may_be_copied_back_under_another_name(
    ledger: Ledger, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    first = ledger.study("full")
    to = empty_database(request, "postgresql", tmp_path)
    copied(ledger, to)
    target = Ledger.open(to)
    study = target.study("full")
    assert study.uid == first.uid
    lease = target.acquire(study)
    orphan, parked = target.waiting(study)
    assert (orphan.parked, parked.parked) == (False, True)
    with target.transaction(lease) as tx:
        assert tx.claim(orphan)
        assert tx.begin_attempt(orphan.trial_id, devices=2).number == 2
        optuna.load_study(study_name="full", storage=target.storage).ask()  # takes what waits
    target.release(lease)
    copy_study(target, study, f"sqlite:///{tmp_path}/from.db", name="back", document="study: back")
    back = ledger.study("back")
    assert (back.document, back.budget_trials) == ("study: back", 9)
    assert back.uid != first.uid
    states = {
        name: [t["state"].name for t in said(ledger, name)["trials"]] for name in ("full", "back")
    }
    assert states["full"] == ["COMPLETE", "RUNNING", "RUNNING", "WAITING"], (
        "the source is as it was"
    )
    assert states["back"] == ["COMPLETE", "RUNNING", "RUNNING", "RUNNING"]


def test_a_taken_name_and_a_study_that_is_being_run_are_refused(
    ledger: Ledger, tmp_path: Path
) -> None:
    study = ledger.study("full")
    with pytest.raises(StudyExists, match="a study full; --as"):
        copied(ledger, f"sqlite:///{tmp_path}/from.db")
    ledger.acquire(study, seconds=30)
    with pytest.raises(LeaseHeld, match=r"`hpo stop full` first; .* in (29|30) s"):
        copied(ledger, f"sqlite:///{tmp_path}/to.db")
    assert not (tmp_path / "to.db").exists()


def test_a_copy_that_fails_in_the_middle_leaves_nothing(ledger: Ledger, tmp_path: Path) -> None:
    to = f"sqlite:///{tmp_path}/to.db"

    def fail(_: Any, __: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("INSERT INTO hpo_metrics"):
            raise ConnectionError("the database is gone")

    sa.event.listen(sa.Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(ConnectionError):
            copied(ledger, to)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", fail)
    assert Ledger.open(to).studies() == []
    copied(ledger, to)


def test_what_is_not_read_back_as_it_was_written_is_no_copy(ledger: Ledger, tmp_path: Path) -> None:
    to = f"sqlite:///{tmp_path}/to.db"
    with Ledger.open(to, create=True).sessions() as session:
        change = "UPDATE trial_params SET param_value = param_value + 1e-9"
        session.execute(
            sa.text(f"CREATE TRIGGER t AFTER INSERT ON trial_params BEGIN {change}; END")
        )
        session.commit()
    with pytest.raises(LedgerError, match="trial_params: what was written is not what is read"):
        copied(ledger, to)
    assert Ledger.open(to).studies() == []


def test_a_table_that_a_later_version_adds_is_copied(ledger: Ledger, tmp_path: Path) -> None:
    to = f"sqlite:///{tmp_path}/to.db"
    for each in (ledger, Ledger.open(to, create=True)):
        with each.sessions() as session:
            trial_id = "trial_id INTEGER REFERENCES trials (trial_id)"
            session.execute(sa.text(f"CREATE TABLE hpo_later (id INTEGER PRIMARY KEY, {trial_id})"))
            session.execute(sa.text("INSERT INTO hpo_later SELECT 7, max(trial_id) FROM trials"))
            session.commit()
    with Ledger.open(to).sessions() as session:
        session.execute(sa.text("DELETE FROM hpo_later"))
        session.commit()
    assert copied(ledger, to)["hpo_later"] == 1
    with Ledger.open(to).sessions() as session:
        number = sa.text("SELECT number FROM hpo_later JOIN trials USING (trial_id)")
        assert session.scalar(number) == 3
