"""Measure a model's perplexity, and that of its sub-models, on valid; on test if it may be read.

All ranks measure together, each its share, and get the same results. Nothing is written or decided
here: `trainer/run.py` decides what a perplexity means for the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from trainer.config.train import TrainConfig
from trainer.data.batches import EvalBlocks
from trainer.data.tokens import Split, Splits
from trainer.engine.distributed import World
from trainer.measuring.depth import depth_front
from trainer.model.layerdrop import Mask
from trainer.model.transformer import LanguageModel
from trainer.runs.checkpoint import DepthPoint

_SEARCH_TOKENS = 16_384  # a greedy search, of O(layers^2) passes, compares on these


class Evaluator:
    """The valid split, ready to be measured on; `alive` is called after every batch."""

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        model: LanguageModel,
        splits: Splits,
        alive: Callable[[], None],
    ) -> None:
        self._config = config.evaluation
        self._world = world
        self._model = model
        self._alive = alive
        self._splits = splits
        self._context = config.data.context
        self._blocks = self._blocks_of("valid")
        self._words = splits.words("valid") - 1  # the first is never a target
        # Sequences that a rank computes with at a time: as many as in training.
        self._rows = config.data.batch_size // (world.ranks * config.optim.accumulation)

    def measure(self, front: bool) -> tuple[float, list[DepthPoint]]:
        """The whole model's perplexity and, with `front`, its depth front if depths are given.

        A perplexity that is not finite is inf, and then the front is empty.
        """
        whole_ppl = self._perplexity(self._blocks, self._words)
        if not (front and self._config.depths and math.isfinite(whole_ppl)):
            return whole_ppl, []
        some = replace(self._blocks, tokens=self._blocks.tokens[: _SEARCH_TOKENS + 1])
        points = depth_front(
            self._model,
            self._config,
            whole_ppl,
            lambda keep: self._perplexity(self._blocks, self._words, keep),
            lambda keep: self._perplexity(some, some.targets, keep),
            self._rows,
        )
        return whole_ppl, self._world.on_rank_0(lambda: points)  # the others' times differ

    def test(self) -> float:
        """Test perplexity of the whole model, inf if it is not finite.

        Raises SplitWithheld unless the run is an evaluation.
        """
        return self._perplexity(self._blocks_of("test"), self._splits.words("test") - 1)

    def _blocks_of(self, split: Split) -> EvalBlocks:
        return EvalBlocks(self._splits.tokens(split), self._context, self._config.stride)

    def _perplexity(self, blocks: EvalBlocks, words: int, keep: Mask | None = None) -> float:
        # Over all blocks, per word, of which they hold `words`; inf if it is not finite.
        world = self._world
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        self._model.eval()
        for batch in blocks.batches(world.rank, world.ranks, self._rows):
            inputs, targets = (torch.from_numpy(array).to(world.device) for array in batch)
            total += self._model.total_nll(inputs, targets, keep)
            self._alive()
        self._model.train()
        world.sum(total)
        try:
            ppl = math.exp(total.item() / words)
        except OverflowError:
            return math.inf
        return ppl if math.isfinite(ppl) else math.inf
