"""What a user's own training function is given; docs/your-own-training.md has the protocol.

This imports nothing heavy, since users' modules import it.
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
    ranks: int  # with more than 1, torch.distributed's process group is joined already
    device: str  # its name in torch, such as cpu or cuda:0
    folder: Path  # of the trial's run; what you write there is kept
    attempt: int  # from 1; the trial's parameters are the same in each
    restored: tuple[int, Path] | None  # the newest checkpoint: its step and its folder
    _checkpoint: Callable[[int], AbstractContextManager[Path]]
    _tick: Callable[[int | None], None]

    def checkpoint(self, step: int) -> AbstractContextManager[Path]:
        """Return a context that gives an empty folder for the state after `step`; rank 0 only.

        The checkpoint counts from the next `yield` on. It is then whole and on the disk, with that
        evaluation if it is of the same step. If the block raises, nothing of it is kept.
        """
        return self._checkpoint(step)

    def tick(self, step: int | None = None) -> None:
        """Say that the training is alive, and at which `step`; each `yield` says so too.

        An attempt that says nothing for `failures.hang_seconds` is ended as hung.
        """
        self._tick(step)
