"""What passes between a gang and the controller. Imported by workers: it imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "evaluated", "finished", "stopped", "diverged", "out_of_memory", "worker_lost", "error"
]


@dataclass(frozen=True)
class Message:
    """What an attempt says: an evaluation, or its end."""

    kind: Kind
    step: int = 0  # optimizer steps done
    metrics: dict[str, float] = field(default_factory=dict)
    first_step: int | None = None  # the step it started or resumed from, once known
    detail: str | None = None  # a traceback, for instance
    depth_front: list[Any] = field(default_factory=list)  # trainer.depth.DepthPoints at `step`


@dataclass(frozen=True)
class Progress:
    """How far a rank has come. `ticks` grows with every step and evaluated batch."""

    trial: int | None
    step: int
    loss: float | None
    ticks: int
