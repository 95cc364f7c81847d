"""Drop policies: which layers a micro step skips.

A policy gives each layer's drop probability at a step; the mask is drawn from (seed, step, micro
step) alone. Every rank must skip the same layers, or ZeRO adds one layer's gradient to another's
without an error, so nothing here knows a rank, a clock or a global random state.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from trainer.config import TrainConfig

Mask = tuple[bool, ...]  # one entry per layer, first layer first: is it kept?

_STREAM = 0x4C415945  # keeps these numbers apart from every other use of the same seed


class DropPolicy(ABC):
    """LayerDrop (Fan et al. 2019, arXiv 1909.11556): each layer is skipped independently.

    Kept layers are not rescaled, at least one layer is always kept, and layers before
    `start_layer` (1-based) are never skipped. Evaluation knows no policy: it runs all layers.
    """

    def __init__(self, layers: int, seed: int, start_layer: int = 1) -> None:
        self.layers = layers
        self.seed = seed
        self.start_layer = start_layer

    @abstractmethod
    def rate(self, step: int) -> float:
        """Drop probability, in [0, 1), of a layer that may be skipped at 0-based `step`."""

    def drop_probability(self, layer: int, step: int) -> float:
        """Probability that `layer` (1-based) is skipped at 0-based optimizer step `step`."""
        return self.rate(step) if layer >= self.start_layer else 0.0

    def mean_probability(self, step: int) -> float:
        """Drop probability at `step`, averaged over the layers."""
        return sum(self.drop_probability(n, step) for n in range(1, self.layers + 1)) / self.layers

    def mask(self, step: int, micro_step: int) -> Mask:
        """The layers kept in micro step `micro_step` of optimizer step `step`, both 0-based."""
        # Raw words, one more than layers: NumPy keeps these for ever, its other draws only within
        # a version. Philox counts in the counter's first word; the position is in the others, so
        # the numbers of two micro steps never overlap (Salmon et al. 2011).
        stream = np.random.Philox(key=[self.seed, _STREAM], counter=[0, step, micro_step, 0])
        *words, spare = stream.random_raw(self.layers + 1).tolist()
        kept = [
            word >= self.drop_probability(layer, step) * 2.0**64
            for layer, word in enumerate(words, start=1)
        ]
        if not any(kept):
            kept[spare % self.layers] = True
        return tuple(kept)


class NoDrop(DropPolicy):
    """Every layer, always: Baseline A."""

    def rate(self, step: int) -> float:
        return 0.0

    def mask(self, step: int, micro_step: int) -> Mask:
        return (True,) * self.layers


class StaticDrop(DropPolicy):
    """The same probability `p` at every step: Baseline B."""

    def __init__(self, layers: int, seed: int, start_layer: int, p: float) -> None:
        super().__init__(layers, seed, start_layer)
        self.p = p

    def rate(self, step: int) -> float:
        return self.p


class AnnealedDrop(DropPolicy):
    """From `p_init` at step 0 to `p_final` at step `decay_steps`, and there it stays."""

    def __init__(
        self,
        layers: int,
        seed: int,
        start_layer: int,
        *,
        p_init: float,
        p_final: float,
        decay_steps: float,
    ) -> None:
        super().__init__(layers, seed, start_layer)
        self.p_init = p_init
        self.p_final = p_final
        self.decay_steps = decay_steps

    def rate(self, step: int) -> float:
        progress = min(step / self.decay_steps, 1.0)
        return self.p_final + (self.p_init - self.p_final) * self.remaining(progress)

    @abstractmethod
    def remaining(self, progress: float) -> float:
        """How much of the way is still to go, from 1 at `progress` 0 to 0 at `progress` 1."""


class LinearDrop(AnnealedDrop):
    """Linear decay of the drop probability."""

    def remaining(self, progress: float) -> float:
        return 1.0 - progress


class CosineDrop(AnnealedDrop):
    """Half a cosine: slow at both ends, steepest half way."""

    def remaining(self, progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))


def make_policy(config: TrainConfig) -> DropPolicy:
    """The drop policy that `config.layerdrop` names, for the run that `config` describes."""
    drop, layers, seed = config.layerdrop, config.model.layers, config.seed
    if drop.policy == "none":
        return NoDrop(layers, seed)
    if drop.policy == "static":
        return StaticDrop(layers, seed, drop.start_layer, drop.p_init)
    annealed = {"linear": LinearDrop, "cosine": CosineDrop}[drop.policy]
    return annealed(
        layers,
        seed,
        drop.start_layer,
        p_init=drop.p_init,
        p_final=drop.p_final,
        decay_steps=drop.decay_steps or drop.decay_fraction * config.steps,
    )
