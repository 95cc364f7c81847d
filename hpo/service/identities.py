"""Checks whose the run folders in a study's place are, before the study starts or goes on.

A name may come again after its study was deleted, or in another ledger: a folder's `identity.json`
tells its study. It tells the texts and the code that trained it, too, which must be the same now.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from hpo.control.places import TRIAL, study_folder, trial_folder
from hpo.study.config import StudyConfig
from hpo.study.functions import find_function, source_digest
from storage import Ledger, StudyRecord
from trainer.config.settings import ConfigError, is_url
from trainer.config.train import resolve
from trainer.config.whole import whole_file
from trainer.data.splits import data_key
from trainer.runs.identity import FILE, Identity, identity_in
from trainer.runs.store import Store, StoreError


def has_trials(runs: str, study: str) -> bool:
    """Return whether the folder that a study of this name would have has folders of trials."""
    return next(_trial_numbers(study_folder(runs, study)), None) is not None


def check_free(runs: str, study: str, remedy: str = "") -> None:
    """Raise ConfigError if the folder of the new `study` has trials, which are another study's."""
    if has_trials(runs, study):
        raise ConfigError(
            f"study {study}: {study_folder(runs, study)} has trials of another study of that name, "
            f"or of one that was deleted; give {remedy}another --runs, or remove that folder"
        )


def check_identities(
    ledger: Ledger, record: StudyRecord, config: StudyConfig, runs: str, *, changed_code: bool
) -> None:
    """Raise ConfigError if the study would go on in folders, on texts or by code of another.

    Looks at the folders of trials that run, of the newest trial, and at those that no trial has
    yet. With `changed_code`, these folders note that the code of now is right.
    """
    folder, uids = study_folder(runs, config.study), ledger.uids(record)
    trials = ledger.trials(record, *TrialState)
    for number in _trial_numbers(folder):
        if number >= len(trials):
            Identity(uids).check_study(_kept(folder, number), trial_folder(folder, number))
    for trial in _telling(trials):
        here, kept = trial_folder(folder, trial.number), _kept(folder, trial.number)
        now = _now(config, trial, here, kept, uids)
        now.check_study(kept, here)
        if not changed_code:
            now.check_content(kept, here)
        elif kept != Identity():
            with whole_file(Path(here) / FILE) as file:
                file.write(now.over(kept).to_json().encode())


def _telling(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that run, and the newest one whose results the study goes on from."""
    begun = [t for t in trials if "run_dir" in t.user_attrs and t.state is not TrialState.FAIL]
    return [t for t in begun if t.state is TrialState.RUNNING or t is begun[-1]]


def _now(
    config: StudyConfig, trial: FrozenTrial, folder: str, kept: Identity, uids: tuple[str, ...]
) -> Identity:
    """Return what the trial would be trained on and by now, as far as its folder tells it too."""
    if config.trainer is not None:
        return Identity(uids, code=source_digest(find_function(config.trainer, os.getcwd())))
    if kept.data is None:
        return Identity(uids)
    document = config.trial_document(trial.params, folder)
    train = resolve(document, f"trial {trial.number} of study {config.study}")
    return Identity(uids, data_key(train.data, test=train.tests))


def _kept(folder: str, number: int) -> Identity:
    here = trial_folder(folder, number)
    return Identity.of(Store(here).read(FILE)) if is_url(here) else identity_in(Path(here))


def _trial_numbers(folder: str) -> Iterator[int]:
    try:
        names = (
            Store(folder).folders()
            if is_url(folder)
            else [path.name for path in Path(folder).glob("*") if path.is_dir()]
        )
    except (ConfigError, StoreError) as error:
        raise ConfigError(f"--runs {error}") from None
    return (int(match[1]) for match in map(TRIAL.fullmatch, names) if match)
