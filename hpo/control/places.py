"""Where a study's runs are written, whatever a ledger says: it may be another program's.

A trial's folder follows from the runs folder, the study's name and the trial's number; a teacher's
from its content. `service/preflight.py` holds what the ledger says against that.
"""

from __future__ import annotations

from pathlib import Path

from trainer.config.settings import is_url


def study_folder(runs: str, study: str) -> str:
    """Where a study's runs are: in an absolute folder, or at a URL."""
    return f"{runs.rstrip('/') if is_url(runs) else Path(runs).absolute()}/{study}"


def trial_folder(folder: str, number: int) -> str:
    """The folder of a trial's run, in its study's."""
    return f"{folder}/trial-{number:04d}"


def teacher_folder(folder: str, key: str) -> str:
    """The folder of a teacher's run that is in its study's, as it is at a URL."""
    return f"{folder}/teachers/{key}"
