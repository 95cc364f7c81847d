"""Experiment tracking: what a study file may ask for, and what a tracker is told.

Tracking is a copy for people to look at, made by the controller, and is never believed: nothing is
read back from it, and nothing that happens to it touches a trial.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field

from trainer.settings import ConfigError, Section

if TYPE_CHECKING:
    from hpo.study import StudyConfig
    from storage import Ledger, StudyRecord, TeacherRecord

Tag = Annotated[str, Field(min_length=1, max_length=64)]


class WandbConfig(Section):
    """Where the runs go. `auto` is online where wandb finds a key, and offline elsewhere."""

    project: str = "hpo"  # wandb's project
    entity: str | None = None  # user or team; the key's own if null
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online with a key
    tags: tuple[Tag, ...] = ()  # on every run


class TrackingConfig(Section):
    """The trackers of a study: none, one, or both."""

    wandb: WandbConfig | None = None
    tensorboard: bool = False  # event files, in the study's folder


class Tracker(Protocol):
    """Follows a study's trials. No method raises, and none waits but `close`, 20 s at most."""

    def begin(
        self, trial: int, attempt: int, config: Mapping[str, Any], params: Mapping[str, Any]
    ) -> None:
        """An attempt at `trial` starts, with the train `config` that its `params` resolve to."""

    def report(self, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        """`metrics` at an optimizer step; a step no later than the last reported is left out."""

    def end(self, trial: int, state: str, reason: str | None) -> None:
        """`trial` ended COMPLETE, PRUNED or FAIL, or stays RUNNING to be continued later."""

    def teacher(self, teacher: TeacherRecord) -> None:
        """Nothing: a teacher is no trial."""
        return

    def close(self) -> None:
        """Send what is left. Nothing may be called after it."""


def check_tracking(config: TrackingConfig) -> None:
    """Raise ConfigError if wandb is asked for and not installed."""
    if not _asks_for_wandb(config):
        return
    # A folder wandb/ of offline runs in the working directory is importable too, with no origin.
    if (spec := importlib.util.find_spec("wandb")) is None or spec.origin is None:
        raise ConfigError(
            "tracking.wandb: wandb is not installed; pip install layerdrop-hpo[wandb]"
        )


def run_id(study_uid: str, trial: int) -> str:
    """What wandb knows a trial's run by, in whatever process it goes on."""
    return hashlib.sha256(f"{study_uid}/{trial}".encode()).hexdigest()[:16]


def make_trackers(
    config: StudyConfig,
    ledger: Ledger,
    record: StudyRecord,
    folder: Path,
    say: Callable[[str], None],
) -> list[Tracker]:
    """The trackers that the study asks for; their files go to `folder`. `say` tells the person.

    Raises ConfigError if wandb is not installed.
    """
    check_tracking(config.tracking)
    trackers: list[Tracker] = []
    if _asks_for_wandb(config.tracking):
        from hpo.wandb_tracker import WandbTracker

        wandb = config.tracking.wandb
        assert wandb is not None
        trackers.append(WandbTracker(wandb, record.name, record.uid, folder, say))
    if config.tracking.tensorboard:
        from hpo.tensorboard_tracker import TensorBoardTracker

        def history(number: int) -> Mapping[int, Mapping[str, Any]]:
            storage = ledger.storage
            trial = storage.get_trial_id_from_study_id_trial_number(record.study_id, number)
            return ledger.metrics(trial)

        metrics = [objective.metric for objective in config.objectives]
        trackers.append(
            TensorBoardTracker(folder / "tensorboard", list(config.space), metrics, history, say)
        )
    return trackers


def _asks_for_wandb(config: TrackingConfig) -> bool:
    return config.wandb is not None and config.wandb.mode != "disabled"
