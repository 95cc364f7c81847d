"""Experiment tracking: what a study file may ask for.

Tracking is a copy that the controller makes for people to look at. Nothing is read back from it,
and nothing that happens to it touches a trial.
"""

from __future__ import annotations

import hashlib
import importlib.util
from typing import Annotated, Literal

from pydantic import Field

from trainer.config.settings import ConfigError, Section

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


def check_tracking(config: TrackingConfig) -> None:
    """Raise ConfigError if wandb is asked for and not installed."""
    if not asks_for_wandb(config):
        return
    # A folder wandb/ of offline runs in the working directory is importable too, with no origin.
    if (spec := importlib.util.find_spec("wandb")) is None or spec.origin is None:
        raise ConfigError(
            "tracking.wandb: wandb is not installed; pip install layerdrop-hpo[wandb]"
        )


def run_id(study_uid: str, trial: int) -> str:
    """Return wandb's id of a trial's run, the same in every process that continues the trial."""
    return hashlib.sha256(f"{study_uid}/{trial}".encode()).hexdigest()[:16]


def asks_for_wandb(config: TrackingConfig) -> bool:
    """Return whether a study wants wandb's runs, in any mode."""
    return config.wandb is not None and config.wandb.mode != "disabled"
