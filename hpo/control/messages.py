"""What a gang says to its controller. Workers import this module, so it imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Job = int | str  # what a gang works at: a trial, by its number, or a teacher, by its key

Kind = Literal[
    "evaluated",
    "finished",
    "stopped",
    "diverged",
    "out_of_memory",
    "worker_lost",
    "disk",  # the run's disk cannot be written to
    "busy",  # another process trains in the run's folder
    "error",
]


@dataclass(frozen=True)
class Message:
    """What an attempt says: an evaluation, or its end."""

    kind: Kind
    step: int = 0  # optimizer steps done
    metrics: dict[str, float] = field(default_factory=dict)
    first_step: int | None = None  # the step it started or resumed from, once known
    detail: str | None = None  # a traceback, for instance
    depth_front: list[Any] = field(default_factory=list)  # the trainer's DepthPoints at `step`

    @property
    def measured(self) -> bool:
        """Whether it brings metrics, which were checkpointed before it was said."""
        return self.kind in ("evaluated", "finished")


@dataclass(frozen=True)
class RankProgress:
    """How far a rank has come. `ticks` grows with every step and evaluated batch."""

    job: Job | None
    step: int
    loss: float | None
    ticks: int
    note: str | None = None  # what the run last had to say


def last_line(detail: str | None) -> str:
    """Return the last line of a traceback or a message, 500 characters of it at most."""
    return (detail or "").strip().rpartition("\n")[2][:500]
