"""The analysis phase of policy `sbld`: how much the training loss rises when a layer is skipped.

It measures by forward passes without gradients, and draws no random number. What that means for
the drop probabilities, `trainer/model/layerdrop.py` decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from trainer.engine.distributed import World
from trainer.model.transformer import LanguageModel


def loss_rises(
    model: LanguageModel, world: World, tokens: npt.NDArray[np.int64], micro_steps: int
) -> list[float]:
    """By how much the loss on `tokens` rises without each layer: nats per token, may be negative.

    `tokens` (sequences, context + 1) are those of the whole step. Each rank takes its share in
    `micro_steps` pieces; all ranks call this together and get the same. Dropout is off.
    """
    layers = len(model.blocks)
    masks = [[1.0] * layers, *(1.0 - np.eye(layers)).tolist()]
    totals = torch.zeros(len(masks), dtype=torch.float64, device=world.device)
    model.eval()
    for rows in np.array_split(tokens[world.rank :: world.ranks], micro_steps):
        share = torch.from_numpy(rows).to(world.device)
        totals += torch.stack(
            [model.total_nll(share[:, :-1], share[:, 1:], mask) for mask in masks]
        )
    model.train()
    world.sum(totals)
    whole, *without = (totals / tokens[:, 1:].size).tolist()
    return [loss - whole for loss in without]


def with_next(mean: Sequence[float], count: int, values: Sequence[float]) -> list[float]:
    """The mean of `values` and of `count` earlier lists, whose mean is `mean`."""
    if count == 0:
        return list(values)
    return [old + (new - old) / (count + 1) for old, new in zip(mean, values, strict=True)]
