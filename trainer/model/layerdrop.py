"""Drop policies: which layers a micro step skips, and how the kept ones are scaled.

A policy gives each layer's drop probability at a step; the mask is drawn from (seed, step, micro
step) alone. Every rank must skip the same layers, or ZeRO adds one layer's gradient to another's
without an error, so nothing here knows a rank, a clock or a global random state.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from trainer.config.train import TrainConfig

# The scale of each layer's residual branches, first layer first: 0.0 skips it, 1.0 changes nothing.
Mask = tuple[float, ...]

_STREAM = 0x4C415945  # keeps these numbers apart from every other use of the same seed


class DropPolicy(ABC):
    """LayerDrop (Fan et al. 2019, arXiv 1909.11556): each layer is skipped independently.

    Kept layers are not rescaled and at least one layer is always kept. Layers before `start_layer`
    (1-based) are never skipped, and no layer more often than its entry in `caps` says. Evaluation
    knows no policy: it runs all layers.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.drop = drop = config.layerdrop
        self.steps = config.steps
        self.layers = config.model.layers
        self.seed = config.seed
        self._largest = [
            drop.caps.get(layer, 1.0) if layer >= drop.start_layer else 0.0
            for layer in range(1, self.layers + 1)
        ]

    @abstractmethod
    def rate(self, layer: int, step: int) -> float:
        """Drop probability of the schedule, in [0, 1), before `start_layer` and `caps` apply."""

    def drop_probability(self, layer: int, step: int) -> float:
        """Probability that `layer` (1-based) is skipped at 0-based optimizer step `step`."""
        return min(self.rate(layer, step), self._largest[layer - 1])

    def residual_scale(self, layer: int, step: int) -> float:
        """The factor for the outputs of `layer` (1-based) at `step`, where the layer is kept."""
        return 1.0

    def mean_probability(self, step: int) -> float:
        """Drop probability at `step`, averaged over the layers."""
        return sum(self.drop_probability(n, step) for n in range(1, self.layers + 1)) / self.layers

    def mask(self, step: int, micro_step: int) -> Mask:
        """The scales of micro step `micro_step` of optimizer step `step`, both 0-based."""
        # Raw words, one more than layers: NumPy never changes these, but a version may change its
        # other draws. Philox counts in the counter's first word, and the position is in the other
        # words, so the numbers of two micro steps never overlap (Salmon et al. 2011).
        stream = np.random.Philox(key=[self.seed, _STREAM], counter=[0, step, micro_step, 0])
        *words, spare = stream.random_raw(self.layers + 1).tolist()
        kept = [
            word >= self.drop_probability(layer, step) * 2.0**64
            for layer, word in enumerate(words, start=1)
        ]
        if not any(kept):
            kept[spare % self.layers] = True
        return tuple(
            self.residual_scale(layer, step) if keep else 0.0
            for layer, keep in enumerate(kept, start=1)
        )


class NoDrop(DropPolicy):
    """Keep every layer at every step: Baseline A."""

    def rate(self, layer: int, step: int) -> float:
        return 0.0

    def mask(self, step: int, micro_step: int) -> Mask:
        return (1.0,) * self.layers


class StaticDrop(DropPolicy):
    """Drop with the same probability `p_init` at every step: Baseline B."""

    def rate(self, layer: int, step: int) -> float:
        return self.drop.p_init


class AnnealedDrop(DropPolicy):
    """Go from `p_init` at step 0 to `p_final` at step `decay_steps`, and stay there."""

    def rate(self, layer: int, step: int) -> float:
        drop = self.drop
        progress = min(step / (drop.decay_steps or drop.decay_fraction * self.steps), 1.0)
        return drop.p_final + (drop.p_init - drop.p_final) * self.remaining(progress)

    @abstractmethod
    def remaining(self, progress: float) -> float:
        """The part of the way that is left, from 1 at `progress` 0 to 0 at `progress` 1."""


class LinearDrop(AnnealedDrop):
    """Linear decay of the drop probability."""

    def remaining(self, progress: float) -> float:
        return 1.0 - progress


class CosineDrop(AnnealedDrop):
    """Half a cosine: slow at both ends, steepest half way."""

    def remaining(self, progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))


class PiecewiseDrop(DropPolicy):
    """Straight lines through `points`, (fraction of the run's steps, p), and constant outside."""

    def rate(self, layer: int, step: int) -> float:
        fractions, rates = zip(*self.drop.points, strict=True)
        return float(np.interp(step / self.steps, fractions, rates))


class ProgressiveDrop(DropPolicy):
    """Progressive Layer Dropping (Zhang & He 2020, arXiv 2010.13369): dropping rises over the run.

    theta(t) = (1 - theta_bar) exp(-gamma t) + theta_bar, and layer l of L is kept with probability
    1 - (l / L) (1 - theta(t)). A kept layer's residual is scaled by 1 / (probability to keep it),
    so that its expectation is that of a layer which always runs. If `gamma` is not given, it is the
    paper's 100 / T for a run of T steps: theta then reaches theta_bar after a tenth of the run.
    """

    def rate(self, layer: int, step: int) -> float:
        gamma = self.drop.gamma or 100.0 / self.steps
        # 1 - theta(t), without the rounding of the subtraction
        dropping = -math.expm1(-gamma * step) * (1.0 - self.drop.theta_bar)
        return layer / self.layers * dropping

    def residual_scale(self, layer: int, step: int) -> float:
        return 1.0 / (1.0 - self.drop_probability(layer, step))


class SensitivityDrop(DropPolicy):
    """SBLD-style, after Sensitivity-Based Layer Dropping (Zeng et al. 2023, AAAI 37, 26321).

    It is public that a short analysis phase measures how much each layer's removal changes the
    training loss, that sensitive layers are then protected and insensitive ones dropped more, and
    that a scheduler changes the probabilities. The metric, thresholds and formula are not public,
    so these choices are ours. No layer is dropped until the analysis is over.
    Only the order of the sensitivities counts, because the first layer's is often by far the
    largest. Drop probabilities are evenly spaced in that order, with mean `p_init`. The smallest is
    0 if p_init <= 1/3; the largest is at most half way from p_init to 1, so that every layer is
    still trained. They rise linearly from 0 over `ramp_fraction` of the run. Caps lower the mean.
    """

    def __init__(self, config: TrainConfig, sensitivity: Sequence[float]) -> None:
        """`sensitivity` has each layer's, first layer first; it is empty before the analysis."""
        super().__init__(config)
        self.first_step = config.analysed_steps().stop
        self.ramp_steps = self.drop.ramp_fraction * self.steps
        self.rates = self._by_order(self.drop.p_init, sensitivity)

    def rate(self, layer: int, step: int) -> float:
        if step < self.first_step:
            return 0.0
        return self.rates.get(layer, 0.0) * min((step - self.first_step) / self.ramp_steps, 1.0)

    def _by_order(self, mean: float, sensitivity: Sequence[float]) -> dict[int, float]:
        spread = min(mean, (1.0 - mean) / 2)
        measured = range(1, len(sensitivity) + 1)
        droppable = [layer for layer in measured if self._largest[layer - 1] > 0.0]
        droppable.sort(key=lambda layer: -sensitivity[layer - 1])
        places = np.linspace(-1.0, 1.0, len(droppable)) if len(droppable) > 1 else [0.0]
        by_layer = zip(droppable, places, strict=False)
        return {layer: mean + spread * float(place) for layer, place in by_layer}


_POLICIES: dict[str, type[DropPolicy]] = {
    "none": NoDrop,
    "static": StaticDrop,
    "linear": LinearDrop,
    "cosine": CosineDrop,
    "piecewise": PiecewiseDrop,
    "pld": ProgressiveDrop,
}


def make_policy(config: TrainConfig, sensitivity: Sequence[float] = ()) -> DropPolicy:
    """The drop policy that `config.layerdrop` names, for the run that `config` describes.

    `sensitivity` is what the analysis of `sbld` has measured so far; other policies ignore it.
    """
    if config.layerdrop.policy == "sbld":
        return SensitivityDrop(config, sensitivity)
    return _POLICIES[config.layerdrop.policy](config)
