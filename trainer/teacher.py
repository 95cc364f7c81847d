"""Which teacher a config names, and where its run is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.config import TrainConfig, load


@dataclass(frozen=True)
class Teacher:
    """A trained run."""

    config: TrainConfig
    folder: Path


def find_teacher(config: TrainConfig) -> Teacher | None:
    """The teacher that `config` names."""
    if not config.distillation.enabled:
        return None
    folder = Path(str(config.distillation.teacher))
    return Teacher(load(folder / "config.yaml"), folder)
