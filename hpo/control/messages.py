"""What a gang says to its controller. Workers import this module, so it imports nothing heavy."""

from __future__ import annotations

import re
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


LONGEST_TEXT = 50_000  # characters of a traceback


def printable(text: str) -> str:
    """Return `text` as every database, log and terminal takes it: escaped, and not too long."""
    if len(text) > LONGEST_TEXT:
        half = LONGEST_TEXT // 2
        text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
    whole = text.encode("utf-8", "backslashreplace").decode()  # halves of surrogate pairs
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], whole)


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # but tabs and ends of lines


@dataclass(frozen=True)
class Message:
    """What an attempt says: an evaluation, or its end. Its text is made printable."""

    kind: Kind
    step: int = 0  # optimizer steps done
    metrics: dict[str, float] = field(default_factory=dict)
    first_step: int | None = None  # the step it started or resumed from, once known
    detail: str | None = None  # a traceback, for instance
    depth_front: list[Any] = field(default_factory=list)  # the trainer's DepthPoints at `step`

    def __post_init__(self) -> None:
        """Make the text printable."""
        if self.detail is not None:
            object.__setattr__(self, "detail", printable(self.detail))

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

    def __post_init__(self) -> None:
        """Make the text printable."""
        if self.note is not None:
            object.__setattr__(self, "note", printable(self.note))


def last_line(detail: str | None) -> str:
    """Return the last line of a traceback or a message, 500 characters of it at most."""
    return (detail or "").strip().rpartition("\n")[2][:500]
