"""Token ids cut into batches: shuffled blocks for training, a split in its order for evaluation.

The step alone decides the position in the data, so a resumed run needs no data state. No random
state of a rank and no clock plays a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.config.settings import ConfigError
from trainer.data.tokens import Tokens

PADDING = -100  # a target that is no token: torch's cross_entropy ignores it by default


@dataclass(frozen=True)
class Batch:
    """The sequences of an optimizer step, and where in the split they begin.

    `tokens` is (sequences, context + 1): inputs are `[:, :-1]`, targets `[:, 1:]`. `starts` is
    (sequences,).
    """

    tokens: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


def tokens_wanted(context: int, batch_size: int) -> int:
    """How many tokens a train split must have for one batch, wherever its blocks begin."""
    return context * (batch_size + 1)


def check_long_enough(tokens: int, context: int, batch_size: int) -> None:
    """Raise ConfigError for a train split that is shorter than a batch."""
    if tokens < tokens_wanted(context, batch_size):
        raise ConfigError(
            f"data.batch_size: {batch_size} sequences of data.context {context} need "
            f"{tokens_wanted(context, batch_size)} tokens, the train split has {tokens}; "
            "use a smaller data.batch_size or data.context, or a longer text"
        )


class TrainBatches:
    """Contiguous blocks of the train split in an order drawn from (seed, epoch).

    Each epoch starts at a random token below `context`, so that blocks differ from epoch to
    epoch. A rest shorter than a batch is dropped; every epoch has the same number of batches.
    """

    def __init__(
        self, tokens: Tokens, context: int, batch_size: int, seed: int, *, aligned: bool = False
    ) -> None:
        """`tokens` has shape (tokens,). Raises ConfigError when it is shorter than a batch.

        With `aligned`, blocks start at multiples of `context` in every epoch, so that a teacher's
        predictions for a block can be cached.
        """
        check_long_enough(len(tokens), context, batch_size)
        # Counted at the largest shift, context - 1, with one token more for the last target.
        blocks = (len(tokens) - context) // context
        self.batches_per_epoch = blocks // batch_size
        # A memory map is slow to index: every slice of it is a memory map again.
        self._tokens = np.asarray(tokens)
        self._blocks, self._context, self._batch_size = blocks, context, batch_size
        self._seed, self._aligned = seed, aligned
        self._window = np.arange(context + 1)
        self._epoch, self._starts = 0, self._draw_starts(0)

    def at(self, step: int) -> Batch:
        """The batch of optimizer step `step` (0-based)."""
        assert step >= 0
        epoch, batch = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._starts = epoch, self._draw_starts(epoch)
        starts = self._starts[batch * self._batch_size : (batch + 1) * self._batch_size]
        tokens = np.asarray(self._tokens[starts[:, None] + self._window], np.int64)
        return Batch(tokens, starts)

    def _draw_starts(self, epoch: int) -> npt.NDArray[np.int64]:
        # NumPy never changes the raw words of Philox, but a new version may change its shuffles.
        words = np.random.Philox(key=[self._seed, epoch]).random_raw(self._blocks + 1)
        shift = 0 if self._aligned else int(words[0] % self._context)
        order = np.argsort(words[1:], kind="stable")
        return np.asarray(shift + self._context * order, np.int64)


@dataclass(frozen=True)
class EvalBlocks:
    """A whole split, shape (tokens,), in windows of `context` that advance by `stride` tokens.

    Every token but the very first is a target exactly once. In the first window all `context`
    targets count; in each later window the last `stride` do, and the tokens before them are only
    context. A `stride` of None means `context`: windows do not overlap.
    """

    tokens: Tokens
    context: int
    stride: int | None = None

    @property
    def targets(self) -> int:
        """Tokens predicted over all ranks."""
        return len(self.tokens) - 1

    def batches(
        self, rank: int, ranks: int, windows_per_batch: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Yield inputs and targets, both (windows, context), of the windows of `rank`.

        A rank has every `ranks`-th window. Targets that are not to be predicted are `PADDING`. The
        last window may reach past the end of the split, where inputs are any token. Ranks may have
        unequal numbers of batches; if the split is short, some ranks have none.
        """
        stride = self.stride or self.context
        last = max(0, self.targets - self.context + stride - 1)
        starts = range(rank * stride, last + 1, ranks * stride)
        for first in range(0, len(starts), windows_per_batch):
            rows = starts[first : first + windows_per_batch]
            batch = np.full((len(rows), self.context + 1), PADDING, np.int64)
            for row, start in zip(batch, rows, strict=True):
                window = self.tokens[start : start + self.context + 1]
                row[: len(window)] = window
            inputs, targets = batch[:, :-1].clip(min=0), batch[:, 1:].copy()
            later = 1 if rows[0] == 0 else 0  # the first row with targets predicted before
            targets[later:, : self.context - stride] = PADDING
            yield inputs, targets
