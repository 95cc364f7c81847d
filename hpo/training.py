"""What a training function of a user's own is given. docs/your-own-training.md has the protocol.

Nothing heavy is imported: a user's module imports this one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TrainingRun"]


@dataclass(frozen=True)
class TrainingRun:
    """One rank's part of one attempt at a trial."""

    rank: int
    ranks: int  # above 1 torch.distributed's process group is there, already joined
    device: str  # as torch knows it, such as cpu or cuda:0
    folder: Path  # of the trial's run: whatever you write there stays
    attempt: int  # from 1; the trial's parameters are the same in each
    restored: tuple[int, Path] | None  # the newest checkpoint: its step and its folder
    _checkpoint: Callable[[int], AbstractContextManager[Path]]
    _tick: Callable[[int | None], None]

    def checkpoint(self, step: int) -> AbstractContextManager[Path]:
        """A context that gives an empty folder for the state after `step`; on rank 0 alone.

        Written aside, it counts from the next `yield` on: whole, on the disk, with that evaluation
        if it is of the same step. Where the block raises, nothing is kept of it.
        """
        return self._checkpoint(step)

    def tick(self, step: int | None = None) -> None:
        """Say that the training is alive, and at which `step`; each `yield` says so too.

        After `failures.hang_seconds` without it the attempt is ended as hung.
        """
        self._tick(step)
