"""Small studies and trials, written straight into a ledger."""

from __future__ import annotations

import optuna
from optuna.study import StudyDirection

from storage import Ledger, StudyRecord, TeacherRecord

MINIMIZE = [StudyDirection.MINIMIZE]
PLANNED_TEACHER = TeacherRecord("0a1b", "/cache/teachers/0a1b", "steps: 30\n", 30)


def new_study(ledger: Ledger, name: str = "tiny", budget: int = 3) -> StudyRecord:
    return ledger.create_study(name, MINIMIZE, ["valid_ppl"], "study: tiny\n", budget)


def run_trial(ledger: Ledger, lease, value: float = 5.0) -> optuna.Trial:
    study_name = next(s.name for s in ledger.studies() if s.study_id == lease.study_id)
    study = optuna.load_study(study_name=study_name, storage=ledger.storage)
    with ledger.transaction(lease) as tx:
        tx.reserve_trial()
        trial = study.ask()
        trial.suggest_float("lr", 0.0, 1.0)
        attempt = tx.begin_attempt(trial._trial_id, devices=2)
    with ledger.transaction(lease) as tx:
        trial.report(value, 10)
        tx.record_metrics(attempt, 10, {"valid_ppl": value})
    with ledger.transaction(lease) as tx:
        study.tell(trial, value)
        tx.end_attempt(attempt, None, None)
    return trial
