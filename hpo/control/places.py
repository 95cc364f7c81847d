"""Where a study's runs are written, whatever a ledger says: it may be another program's.

A trial's folder follows from the runs folder, the study's name and the trial's number; a teacher's
from its content. What the ledger says is held against that before anything is written there.
"""

from __future__ import annotations

from pathlib import Path

from optuna.trial import TrialState

from storage import Ledger, StudyRecord
from trainer.config import resolve
from trainer.settings import ConfigError, is_url, parse_document
from trainer.teacher import content_folder, is_key, is_trained


def study_folder(runs: str, study: str) -> str:
    """Where a study's runs are: in an absolute folder, or at a URL."""
    return f"{runs.rstrip('/') if is_url(runs) else Path(runs).absolute()}/{study}"


def trial_folder(folder: str, number: int) -> str:
    """The folder of a trial's run, in its study's."""
    return f"{folder}/trial-{number:04d}"


def teacher_folder(folder: str, key: str) -> str:
    """The folder of a teacher's run that is in its study's, as it is at a URL."""
    return f"{folder}/teachers/{key}"


def check_places(ledger: Ledger, record: StudyRecord, runs: str) -> None:
    """Raise ConfigError unless the study's runs go on where the ledger says that they are.

    A study whose runs were moved together with the runs folder goes on in the new one.
    """
    folder = study_folder(runs, record.name)
    for trial in ledger.trials(record, TrialState.RUNNING):
        here = trial_folder(folder, trial.number)
        kept = trial.user_attrs.get("run_dir")
        if kept != here and (is_url(runs) or not Path(here).is_dir()):
            raise ConfigError(
                f"--runs {runs}: trial {trial.number} of study {record.name} is kept in {kept!a}, "
                f"not in {here}; give the --runs that it is in, or copy it there"
            )
    for teacher in ledger.teachers(record):
        what = f"study {record.name}: teacher {teacher.key!a}"
        if not is_key(teacher.key):  # it becomes part of a path
            raise ConfigError(f"{what}: no key of a teacher's content; the ledger was changed")
        if is_trained(teacher.folder, teacher.steps):
            continue
        here = teacher_folder(folder, teacher.key)
        if not is_url(runs):
            here = str(content_folder(resolve(parse_document(teacher.config, what), what)))
        if teacher.folder != here:
            raise ConfigError(
                f"{what}: is to be trained in {teacher.folder!a}, and this machine's is {here}; "
                "set HPO_CACHE_DIR as it was when the study was started"
            )
