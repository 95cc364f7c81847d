"""Where a study's runs are written.

A trial's folder follows from the runs folder, the name in the study's file, which a rename does not
change, and the trial's number; a teacher's folder follows from its content. A ledger, which another
program may have changed, decides neither: `service/preflight.py` compares what it says with these
places. It does say which runs folder a study has, unless a person says so.
"""

from __future__ import annotations

import re
from pathlib import Path

from trainer.config.settings import is_url

TRIAL = re.compile(r"trial-(\d{4,9})")  # the name of a trial's run folder


def study_folder(runs: str, study: str) -> str:
    """Return where a study's runs are: an absolute folder, or a URL."""
    return f"{runs.rstrip('/') if is_url(runs) else Path(runs).absolute()}/{study}"


def trial_folder(folder: str, number: int) -> str:
    """Return the run folder of trial `number`, inside the study's `folder`."""
    return f"{folder}/trial-{number:04d}"


def teacher_folder(folder: str, key: str) -> str:
    """Return a teacher's run folder inside the study's, which it has only where that is a URL."""
    return f"{folder}/teachers/{key}"
