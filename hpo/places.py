"""Where a study's runs are written, whatever a ledger says: it may be another program's.

A trial's folder follows from the runs folder, the study's name and the trial's number; a teacher's
from its content. What the ledger says is held against that before anything is written there.
"""

from __future__ import annotations

from pathlib import Path

from optuna.trial import TrialState

from storage import Ledger, StudyRecord
from trainer.config import resolve
from trainer.settings import ConfigError, parse_document
from trainer.teacher import content_folder, is_trained


def trial_folder(runs: Path, study: str, number: int) -> Path:
    """The folder of a trial's run."""
    return runs / study / f"trial-{number:04d}"


def check_places(ledger: Ledger, record: StudyRecord, runs: Path) -> None:
    """Raise ConfigError unless the study's runs go on where the ledger says that they are.

    A study whose runs were moved together with the runs folder goes on in the new one.
    """
    states = (TrialState.RUNNING,)
    for trial in ledger.storage.get_all_trials(record.study_id, deepcopy=False, states=states):
        here = trial_folder(runs.absolute(), record.name, trial.number)
        kept = trial.user_attrs.get("run_dir")
        if kept != str(here) and not here.is_dir():
            raise ConfigError(
                f"--runs {runs}: trial {trial.number} of study {record.name} is kept in {kept!a}, "
                f"not in {here}; give the --runs that it is in, or move it"
            )
    for teacher in ledger.teachers(record):
        what = f"study {record.name}: teacher {teacher.key!a}"
        if is_trained(Path(teacher.folder), teacher.steps):
            continue
        here = content_folder(resolve(parse_document(teacher.config, what), what))
        if teacher.folder != str(here):
            raise ConfigError(
                f"{what}: is to be trained in {teacher.folder!a}, and this machine's is {here}; "
                "set HPO_CACHE_DIR as it was when the study was started"
            )
