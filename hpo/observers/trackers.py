"""The trackers that a study asks for, made for one controller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpo.observers.background import Tracker
from hpo.study.config import StudyConfig
from hpo.study.tracking import asks_for_wandb, check_tracking
from storage import Ledger, StudyRecord


def make_trackers(
    config: StudyConfig,
    ledger: Ledger,
    record: StudyRecord,
    folder: Path,
    say: Callable[[str], None],
) -> list[Tracker]:
    """Return the trackers that the study asks for, which write to `folder`; `say` tells the person.

    Raises ConfigError if the study asks for wandb and it is not installed.
    """
    check_tracking(config.tracking)
    trackers: list[Tracker] = []
    if asks_for_wandb(config.tracking):
        from hpo.observers.wandb import WandbTracker

        wandb = config.tracking.wandb
        assert wandb is not None
        trackers.append(WandbTracker(wandb, record.name, record.uid, folder, say))
    if config.tracking.tensorboard:
        from hpo.observers.tensorboard import TensorBoardTracker

        def history(number: int) -> Mapping[int, Mapping[str, Any]]:
            storage = ledger.storage
            trial = storage.get_trial_id_from_study_id_trial_number(record.study_id, number)
            return ledger.metrics(trial)

        metrics = [objective.metric for objective in config.objectives]
        trackers.append(
            TensorBoardTracker(folder / "tensorboard", list(config.space), metrics, history, say)
        )
    return trackers
