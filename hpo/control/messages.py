"""What passes between a gang and the controller. Imported by workers: it imports nothing heavy."""

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
    "disk",  # it cannot be written to
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


@dataclass(frozen=True)
class Progress:
    """How far a rank has come. `ticks` grows with every step and evaluated batch."""

    job: Job | None
    step: int
    loss: float | None
    ticks: int
    note: str | None = None  # what the run last had to say


def named(job: Job) -> str:
    """What people call it: `trial 7`, or `teacher 0123456789abcdef`."""
    return f"trial {job}" if isinstance(job, int) else f"teacher {job}"


def last_line(detail: str | None) -> str:
    """What a traceback or a message comes to: its last line, 500 characters at most."""
    return (detail or "").strip().rpartition("\n")[2][:500]
