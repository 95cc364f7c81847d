"""The ledger's contract, on every backend."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import TrialState

from storage import (
    BudgetSpent,
    Lease,
    LeaseHeld,
    LeaseLost,
    Ledger,
    LedgerError,
    Reason,
    StudyExists,
    StudyNotFound,
)
from storage.database import VERSION_TABLE, shown
from storage.models import ControllerRow
from tests.leases import lapse, steady
from tests.storage.studies import new_study, run_trial


@pytest.fixture
def ledger(ledger_url: str) -> Ledger:
    return Ledger.open(ledger_url, create=True)


class TestAStudy:
    def test_is_read_back_as_it_was_recorded(self, ledger: Ledger, ledger_url: str) -> None:
        made = new_study(ledger)
        read = Ledger.open(ledger_url).study("tiny")
        assert read == made
        assert (read.document, read.budget_trials, read.reserved_trials) == ("study: tiny\n", 3, 0)

    def test_is_an_ordinary_optuna_study_too(self, ledger: Ledger, ledger_url: str) -> None:
        new_study(ledger)
        study = optuna.load_study(study_name="tiny", storage=ledger.storage)
        assert study.direction == StudyDirection.MINIMIZE
        assert study.metric_names == ["valid_ppl"]

    def test_cannot_be_recorded_twice(self, ledger: Ledger) -> None:
        new_study(ledger)
        with pytest.raises(StudyExists, match="tiny"):
            new_study(ledger)
        assert len(ledger.studies()) == 1

    def test_that_is_unknown_is_refused_with_the_nearest_name(self, ledger: Ledger) -> None:
        new_study(ledger)
        with pytest.raises(StudyNotFound, match="did you mean tiny"):
            ledger.study("tyni")

    def test_deleted_with_optuna_leaves_no_row_that_a_new_one_would_inherit(
        self, ledger: Ledger
    ) -> None:
        study = new_study(ledger)
        lease = ledger.acquire(study)
        run_trial(ledger, lease)
        ledger.release(lease)
        optuna.delete_study(study_name="tiny", storage=ledger.storage)
        fresh = new_study(ledger)
        assert ledger.controllers(fresh) == []
        assert ledger.attempts(fresh) == {}


class TestATransaction:
    def test_keeps_optunas_rows_and_ours_together(self, ledger: Ledger, ledger_url: str) -> None:
        study = new_study(ledger)
        trial = run_trial(ledger, ledger.acquire(study), 4.5)
        read = Ledger.open(ledger_url)
        frozen = optuna.load_study(study_name="tiny", storage=read.storage).trials[0]
        assert (frozen.state, frozen.value) == (TrialState.COMPLETE, 4.5)
        assert frozen.intermediate_values == {10: 4.5}
        assert read.metrics(trial._trial_id) == {10: {"valid_ppl": 4.5}}
        (attempt,) = read.trial_attempts(trial._trial_id)
        assert (attempt.number, attempt.last_step, attempt.reason) == (1, 10, None)
        assert attempt.device_seconds == pytest.approx(
            2 * ((attempt.ended_at or 0) - attempt.started_at)
        )

    def test_keeps_the_newest_depth_front_once_however_often_it_is_told(
        self, ledger: Ledger, ledger_url: str
    ) -> None:
        lease = ledger.acquire(new_study(ledger))
        trial = run_trial(ledger, lease)
        (attempt,) = ledger.trial_attempts(trial._trial_id)
        point = {"depth": 2, "search": "greedy", "layers": [1, 4], "valid_ppl": 9.5,
                 "parameters": 3 * 10**9, "seconds_per_token": 1e-5}  # fmt: skip
        whole = {**point, "depth": 4, "search": "whole", "layers": [1, 2, 3, 4]}
        for step, points in ((10, [point]), (20, [whole, point]), (20, [whole, point]), (30, [])):
            with ledger.transaction(lease) as tx:
                tx.record_depth_front(attempt, step, points)
        read = Ledger.open(ledger_url)
        assert read.depth_front(trial._trial_id) == [{"step": 20, **point}, {"step": 20, **whole}]
        assert read.depth_front(trial._trial_id + 1) == []

    def test_that_fails_leaves_nothing_of_optunas_writes(
        self, ledger: Ledger, ledger_url: str
    ) -> None:
        study = new_study(ledger)
        lease = ledger.acquire(study)
        optuna_study = optuna.load_study(study_name="tiny", storage=ledger.storage)
        with pytest.raises(ZeroDivisionError), ledger.transaction(lease) as tx:
            tx.reserve_trial()
            optuna_study.ask().suggest_float("lr", 0.0, 1.0)
            _ = 1 / 0
        read = Ledger.open(ledger_url)
        assert read.study("tiny").reserved_trials == 0
        assert optuna.load_study(study_name="tiny", storage=read.storage).trials == []

    def test_of_a_process_killed_before_its_commit_leaves_nothing(
        self, ledger: Ledger, ledger_url: str
    ) -> None:
        new_study(ledger)
        program = f"""
import os, signal, optuna
from storage import Ledger
ledger = Ledger.open({ledger_url!r})
lease = ledger.acquire(ledger.study("tiny"))
study = optuna.load_study(study_name="tiny", storage=ledger.storage)
with ledger.transaction(lease) as tx:
    tx.reserve_trial()
    trial = study.ask()
    trial.suggest_float("lr", 0.0, 1.0)
    tx.begin_attempt(trial._trial_id, devices=1)
    os.kill(os.getpid(), signal.SIGKILL)
"""
        ended = subprocess.run([sys.executable, "-c", program], check=False)
        assert ended.returncode == -signal.SIGKILL
        lapse(ledger)
        study = Ledger.open(ledger_url).study("tiny")
        assert study.reserved_trials == 0
        run_trial(ledger, ledger.acquire(study))
        assert ledger.study("tiny").reserved_trials == 1


class TestTheBudget:
    def test_is_never_exceeded_by_one(self, ledger: Ledger) -> None:
        lease = ledger.acquire(new_study(ledger, budget=2))
        run_trial(ledger, lease)
        run_trial(ledger, lease)
        with pytest.raises(BudgetSpent):
            run_trial(ledger, lease)
        study = optuna.load_study(study_name="tiny", storage=ledger.storage)
        assert len(study.trials) == 2

    def test_holds_when_many_threads_ask_at_once(self, ledger: Ledger) -> None:
        lease = ledger.acquire(new_study(ledger, budget=5))

        def ask(_: int) -> bool:
            try:
                with ledger.transaction(lease) as tx:
                    tx.reserve_trial()
                    optuna.load_study(study_name="tiny", storage=ledger.storage).ask()
            except BudgetSpent:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(ask, range(12)))
        study = optuna.load_study(study_name="tiny", storage=ledger.storage)
        assert sum(made) == len(study.trials) == 5
        assert [trial.number for trial in study.trials] == list(range(5))

    def test_can_be_raised(self, ledger: Ledger) -> None:
        study = new_study(ledger, budget=0)
        ledger.release(ledger.acquire(study))
        lease = ledger.acquire(study, trials=1)
        run_trial(ledger, lease)
        assert ledger.study("tiny").reserved_trials == 1


class TestALease:
    def test_that_runs_is_not_taken_over(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        ledger.acquire(study, seconds=30)
        with pytest.raises(LeaseHeld, match=str(os.getpid())) as refused:
            ledger.acquire(study)
        assert 25 < refused.value.expires_in <= 30

    def test_given_back_can_be_had_at_once(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        ledger.release(ledger.acquire(study, seconds=30))
        run_trial(ledger, ledger.acquire(study))
        assert [c.state for c in ledger.controllers(study)] == ["released", "active"]

    def test_that_ran_out_is_taken_over_and_its_late_writer_refused(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        late = ledger.acquire(study)
        lapse(ledger)
        run_trial(ledger, ledger.acquire(study))
        with pytest.raises(LeaseLost):
            run_trial(ledger, late)
        ledger.release(late)
        assert [c.state for c in ledger.controllers(study)] == ["lost", "active"]
        assert len(optuna.load_study(study_name="tiny", storage=ledger.storage).trials) == 1

    def test_that_ran_out_but_nobody_took_over_goes_on_at_the_next_write(
        self, ledger: Ledger
    ) -> None:
        study = new_study(ledger)
        lease = ledger.acquire(study)
        lapse(ledger)
        run_trial(ledger, lease)
        with pytest.raises(LeaseHeld):
            ledger.acquire(study)

    def test_that_ran_out_is_watched_before_it_is_taken_over(self, ledger: Ledger) -> None:
        """Its controller may live, if the database was away: a newcomer cannot tell at first."""
        study = new_study(ledger)
        lease = ledger.acquire(study)
        lapse(ledger, dead=False)
        with pytest.raises(LeaseHeld) as held:
            ledger.acquire(study)
        with ledger.transaction(lease):
            pass
        with pytest.raises(LeaseHeld):
            ledger.acquire(study, watched=held.value.leases)
        lapse(ledger, dead=False)
        ledger.acquire(study, watched=held.value.leases)
        assert [c.state for c in ledger.controllers(study)] == ["lost", "active"]

    def test_is_kept_by_its_heartbeat(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        lease = ledger.acquire(study, seconds=3)
        errors: list[Exception] = []
        with ledger.heartbeat(lease, errors.append):
            lapse(ledger)
            while ledger.controllers(study)[0].seen_at == lease.started_at:
                time.sleep(0.05)
            with pytest.raises(LeaseHeld):
                ledger.acquire(study)
        assert errors == []

    def test_that_is_lost_is_told_to_the_heartbeats_owner(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        lease = ledger.acquire(study, seconds=0.3)
        lapse(ledger)
        ledger.acquire(study)
        told = threading.Event()
        with ledger.heartbeat(lease, lambda error: told.set()):
            assert told.wait(60)

    @pytest.mark.parametrize("after_a_dead_one", [True, False])
    def test_has_one_winner_of_many_controllers_at_once(
        self, ledger: Ledger, after_a_dead_one: bool
    ) -> None:
        study = new_study(ledger)
        if after_a_dead_one:
            ledger.acquire(study)
            lapse(ledger)

        def acquire(_: int) -> bool:
            try:
                ledger.acquire(study)
            except LeaseHeld:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(acquire, range(4))) == 1


class TestAnOrphan:
    def test_is_a_running_trial_of_a_controller_whose_lease_was_taken_over(
        self, ledger: Ledger
    ) -> None:
        study = new_study(ledger)
        dead = ledger.acquire(study)
        optuna_study = optuna.load_study(study_name="tiny", storage=ledger.storage)
        with ledger.transaction(dead) as tx:
            tx.reserve_trial()
            trial = optuna_study.ask()
            tx.begin_attempt(trial._trial_id, devices=1)
        assert ledger.waiting(study) == []
        lapse(ledger)
        heir = ledger.acquire(study)
        (waiting,) = ledger.waiting(study)
        assert waiting.trial_id == trial._trial_id
        with ledger.transaction(heir) as tx:
            assert tx.claim(waiting)
            attempt = tx.begin_attempt(trial._trial_id, devices=1)
        assert ledger.waiting(study) == []
        assert attempt.number == 2
        first = ledger.trial_attempts(trial._trial_id)[0]
        assert first.reason is Reason.CONTROLLER_LOST
        assert first.ended_at is not None

    def test_is_a_trial_stopped_by_a_person_too(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        lease = ledger.acquire(study)
        optuna_study = optuna.load_study(study_name="tiny", storage=ledger.storage)
        with ledger.transaction(lease) as tx:
            trial = optuna_study.ask()
            attempt = tx.begin_attempt(trial._trial_id, devices=1)
        with ledger.transaction(lease) as tx:
            tx.end_attempt(attempt, Reason.STOPPED, None)
            tx.wait(trial._trial_id)
        assert [each.trial_id for each in ledger.waiting(study)] == [trial._trial_id]

    def test_left_open_by_a_controller_that_gave_its_lease_back_has_an_end_and_a_reason(
        self, ledger: Ledger
    ) -> None:
        study = new_study(ledger)
        lease = ledger.acquire(study)
        optuna_study = optuna.load_study(study_name="tiny", storage=ledger.storage)
        with ledger.transaction(lease) as tx:
            trial = optuna_study.ask()
            tx.begin_attempt(trial._trial_id, devices=1)
        ledger.release(lease)
        (attempt,) = ledger.trial_attempts(trial._trial_id)
        assert attempt.reason is Reason.CONTROLLER_LOST
        assert attempt.ended_at is not None
        assert [each.trial_id for each in ledger.waiting(study)] == [trial._trial_id]


class TestManyControllers:
    def test_each_have_a_lease_where_they_join_each_other(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        one, other = ledger.acquire(study), ledger.acquire(study, join=True)
        with pytest.raises(LeaseHeld):
            ledger.acquire(study)
        run_trial(ledger, one)
        run_trial(ledger, other)
        assert [c.state for c in ledger.controllers(study)] == ["active", "active"]

    def test_take_from_one_of_them_what_its_lease_has_run_out_on(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        paused = ledger.acquire(study)
        trial = begun(ledger, paused)
        other = ledger.acquire(study, join=True)
        assert [a.controller_id for a in ledger.open_attempts(study)] == [paused.controller_id]
        lapse(ledger, paused)
        with ledger.transaction(other) as tx:
            tx.reap()
        assert ledger.open_attempts(study) == []
        assert [each.trial_id for each in ledger.waiting(study)] == [trial._trial_id]
        with pytest.raises(LeaseLost), ledger.transaction(paused):
            pass
        with ledger.transaction(other):
            pass

    def test_who_could_not_renew_takes_nothing_from_others_that_could_not_either(
        self, ledger: Ledger
    ) -> None:
        """So it is after an outage, and after the database's clock has jumped forward."""
        study = new_study(ledger)
        leases = [ledger.acquire(study, join=True) for _ in range(3)]
        trial = begun(ledger, leases[1])
        for lease in leases:
            steady(ledger, lease)
        lapse(ledger, dead=False)
        for lease in leases:
            with ledger.transaction(lease) as tx:
                tx.reap()
        assert [c.state for c in ledger.controllers(study)] == ["active"] * 3
        assert [a.trial_id for a in ledger.open_attempts(study)] == [trial._trial_id]

    @pytest.mark.parametrize("back", [False, True])
    def test_whose_renewals_had_no_gap_take_from_one_that_renewed_nothing(
        self, ledger: Ledger, back: bool
    ) -> None:
        study = new_study(ledger)
        one, other = (ledger.acquire(study, join=True) for _ in range(2))
        if back:  # the clock was set back after its last renewal
            with ledger.sessions() as session:
                its = sa.update(ControllerRow).where(ControllerRow.id == other.controller_id)
                session.execute(its.values(seen_at=4e9, expires_at=4e9 + 15))
                session.commit()
        else:
            lapse(ledger, other, dead=False)
        with ledger.transaction(one) as tx:
            tx.reap()
        assert [c.state for c in ledger.controllers(study)] == ["active", "active"]
        steady(ledger, one)
        with ledger.transaction(one) as tx:
            tx.reap()
        assert [c.state for c in ledger.controllers(study)] == ["active", "lost"]

    def test_do_not_reap_those_that_live(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        leases = [ledger.acquire(study, join=True) for _ in range(3)]
        for lease in leases:
            with ledger.transaction(lease) as tx:
                tx.reap()
        assert [c.state for c in ledger.controllers(study)] == ["active"] * 3

    def test_claim_a_waiting_trial_once(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        first = ledger.acquire(study)
        trial = begun(ledger, first)
        ledger.release(first)
        leases = [ledger.acquire(study, join=True) for _ in range(4)]
        (waiting,) = ledger.waiting(study)
        assert waiting.trial_id == trial._trial_id

        def claim(lease: Lease) -> bool:
            with ledger.transaction(lease) as tx:
                return tx.claim(waiting)

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(claim, leases)) == 1

    @pytest.mark.parametrize("parked", [False, True])
    def test_claim_a_trial_only_as_they_saw_it_wait(self, ledger: Ledger, parked: bool) -> None:
        """In between another controller has run it, and left it to wait for something else."""
        study = new_study(ledger)
        one, other = ledger.acquire(study), ledger.acquire(study, join=True)
        trial = begun(ledger, one)
        with ledger.transaction(one) as tx:
            tx.wait(trial._trial_id)
        (seen,) = ledger.waiting(study)
        with ledger.transaction(other) as tx:
            assert tx.claim(seen)
            attempt = tx.begin_attempt(trial._trial_id, devices=1)
            tx.end_attempt(attempt, Reason.WORKER_LOST, None)
            tx.wait(trial._trial_id, seconds=0.0 if parked else 60.0, parked=parked)
        with ledger.transaction(one) as tx:
            assert not tx.claim(seen)
        (waiting,) = ledger.waiting(study)
        with ledger.transaction(one) as tx:
            assert tx.claim(waiting)
        assert ledger.waiting(study) == []

    def test_see_which_trials_are_due_and_which_are_parked(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        lease = ledger.acquire(study)
        later, parked = begun(ledger, lease), begun(ledger, lease)
        with ledger.transaction(lease) as tx:
            tx.wait(later._trial_id, seconds=60)
            tx.wait(parked._trial_id, parked=True)
        first, second = ledger.waiting(study)
        assert (first.number, first.parked, 50 < first.due_in <= 60) == (0, False, True)
        assert (second.number, second.parked, second.due_in <= 0) == (1, True, True)

    def test_run_for_hours_that_count_once(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        for _ in range(3):
            ledger.acquire(study, join=True)
        spans = [(100.0, 200.0), (150.0, 180.0), (250.0, 300.0)]
        with ledger.sessions() as session:
            for row, (start, end) in zip(session.query(ControllerRow), spans, strict=True):
                row.started_at, row.seen_at = start, end
            session.commit()
        assert ledger.seconds(study) == 150.0


def begun(ledger: Ledger, lease: Lease) -> optuna.Trial:
    """A trial with an open attempt under `lease`."""
    study = optuna.load_study(study_name="tiny", storage=ledger.storage)
    with ledger.transaction(lease) as tx:
        tx.reserve_trial()
        trial = study.ask()
        tx.begin_attempt(trial._trial_id, devices=1)
    return trial


class TestATransactionThatFailed:
    def test_leaves_nothing_that_optuna_remembers(self, ledger: Ledger) -> None:
        lease = ledger.acquire(new_study(ledger))
        study = optuna.load_study(study_name="tiny", storage=ledger.storage)
        with pytest.raises(RuntimeError), ledger.transaction(lease):
            study.ask()
            study.get_trials()
            raise RuntimeError("the database went away")
        assert study.get_trials() == []
        assert run_trial(ledger, lease).number == 0
        assert len(study.get_trials()) == 1


class TestAWishToStop:
    def test_is_for_the_controllers_of_its_time(self, ledger: Ledger) -> None:
        study = new_study(ledger)
        before = ledger.acquire(study)
        assert ledger.study("tiny").stop_requested_at is None
        ledger.request_stop(study)
        after = ledger.acquire(study, join=True)
        asked_at = ledger.study("tiny").stop_requested_at
        assert asked_at is not None
        assert before.started_at < asked_at < after.started_at


class TestOpening:
    def test_a_database_that_does_not_exist_is_refused_and_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(LedgerError, match="no such database"):
            Ledger.open(f"sqlite:///{tmp_path}/none.db")
        assert list(tmp_path.iterdir()) == []

    def test_a_database_without_a_ledger_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        file = tmp_path / "other.db"
        sqlite3.connect(file).execute("CREATE TABLE t (x)").connection.close()
        before = file.read_bytes()
        with pytest.raises(LedgerError, match="holds no ledger"):
            Ledger.open(f"sqlite:///{file}")
        assert file.read_bytes() == before

    def test_a_file_that_is_no_database_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "hpo.db"
        file.write_bytes(b"not a database" * 100)
        with pytest.raises(LedgerError, match="cannot be opened"):
            Ledger.open(f"sqlite:///{file}", create=True)

    def test_an_older_ledger_is_migrated_with_what_it_holds(
        self, ledger: Ledger, ledger_url: str
    ) -> None:
        from storage.models import Base

        trial = run_trial(ledger, ledger.acquire(new_study(ledger)))
        first = {"hpo_studies", "hpo_controllers", "hpo_attempts", "hpo_metrics"}
        with ledger.sessions() as session:  # as the first version left it
            if not ledger.on_a_server:
                for table in Base.metadata.tables:
                    session.execute(sa.text(f"DROP TRIGGER IF EXISTS {table}_follows"))
            for table in Base.metadata.tables.keys() - first:
                session.execute(sa.text(f"DROP TABLE {table}"))
            session.execute(sa.text("DROP INDEX ix_hpo_attempts_open"))
            for column in ("controllers DROP COLUMN token", "controllers DROP COLUMN steady_since",
                           "studies DROP COLUMN runs"):  # fmt: skip
                session.execute(sa.text(f"ALTER TABLE hpo_{column}"))
            session.execute(sa.text("UPDATE hpo_alembic_version SET version_num = '0001'"))
            session.commit()
        migrated = Ledger.open(ledger_url)
        assert migrated.depth_front(trial._trial_id) == []
        assert migrated.metrics(trial._trial_id) == {10: {"valid_ppl": 5.0}}

    def test_a_newer_ledger_is_refused_with_what_to_do(
        self, ledger: Ledger, ledger_url: str
    ) -> None:
        with ledger.sessions() as session:
            session.execute(sa.text("UPDATE hpo_alembic_version SET version_num = '9999'"))
            session.commit()
        with pytest.raises(LedgerError, match="newer version.*upgrade"):
            Ledger.open(ledger_url, create=True)

    @pytest.mark.parametrize(
        "url",
        ["hpo.db", "mysql://me:secret@host/db", "redis://host", "", "postgresql://u:p@h:abc/db"],
    )
    def test_an_address_that_is_no_ledgers_is_refused_in_one_line(self, url: str) -> None:
        with pytest.raises(LedgerError) as refused:
            Ledger.open(url, create=True)
        assert "\n" not in str(refused.value)
        assert "secret" not in str(refused.value)

    def test_a_server_that_does_not_answer_is_named_without_its_password(self) -> None:
        url = "postgresql://me:hunter2@127.0.0.1:9/db"
        with pytest.raises(LedgerError, match="127.0.0.1") as refused:
            Ledger.open(url)
        assert "hunter2" not in str(refused.value)
        assert "hunter2" not in shown(url)

    def test_a_read_only_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(LedgerError, match="does not exist"):
            Ledger.open(f"sqlite:///{tmp_path}/no/folder/hpo.db", create=True)

    def test_sqlite_is_kept_in_wal_mode(self, tmp_path: Path) -> None:
        ledger = Ledger.open(f"sqlite:///{tmp_path}/hpo.db", create=True)
        with ledger.sessions() as session:
            assert session.scalar(sa.text("PRAGMA journal_mode")) == "wal"

    def test_a_program_killed_while_it_makes_the_tables_leaves_none(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/hpo.db"
        program = f"""
import os, signal
import sqlalchemy as sa
from storage import Ledger

@sa.event.listens_for(sa.Engine, "before_cursor_execute")
def kill(connection, cursor, statement, *rest):
    if "hpo_metrics" in statement:
        os.kill(os.getpid(), signal.SIGKILL)

Ledger.open({url!r}, create=True)
"""
        ended = subprocess.run([sys.executable, "-c", program], check=False)
        assert ended.returncode == -signal.SIGKILL
        assert new_study(Ledger.open(url, create=True)).name == "tiny"

    def test_our_migrations_leave_exactly_the_tables_of_our_models(self, ledger: Ledger) -> None:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        from storage.models import Base

        with ledger.sessions() as session:
            ours = MigrationContext.configure(
                session.connection(),
                opts={"include_name": _is_ours, "version_table": VERSION_TABLE},
            )
            changes = compare_metadata(ours, Base.metadata)
        tables_and_columns = {"add_table", "remove_table", "add_column", "remove_column"}
        assert [change for change in changes if change[0] in tables_and_columns] == []


def _is_ours(name: str | None, kind: str, _: object) -> bool:
    return kind != "table" or (name or "").startswith("hpo_")
