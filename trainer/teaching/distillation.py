"""Learning from a frozen teacher: what it teaches in each micro step.

The teacher is another model of this package on the same data, in evaluation mode, without
gradients and without layer dropping. It runs beside the engine (live), or its predictions are read
from a cache (`soft_targets.py`). `teacher.py` finds the teacher and knows whether it is trained.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.config.sections import DistillationConfig
from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig
from trainer.data.tokens import Splits
from trainer.model.losses import Lesson, Live, Mixture, TopK
from trainer.model.transformer import DTYPES, LanguageModel
from trainer.runs.checkpoint import newest_weights
from trainer.teaching.soft_targets import FORMAT, SoftTargets, weights_digest
from trainer.teaching.teacher import Teacher


class Distiller(ABC):
    """A teacher's part in the loss of one run."""

    def __init__(self, config: DistillationConfig) -> None:
        self.config = config

    @abstractmethod
    def lesson(self, step: int, starts: npt.NDArray[np.int64], inputs: Tensor) -> Lesson:
        """The lesson of a micro step of 0-based `step`: `inputs` (B, T) begin at `starts`."""

    def mixture(self, step: int) -> Mixture:
        """The terms' weights: beta is 0 at step 0, and at full size after `beta_warmup_steps`."""
        config, warmup = self.config, self.config.beta_warmup_steps
        beta = config.beta * (min(1.0, step / warmup) if warmup else 1.0)
        return Mixture(config.alpha, beta, config.temperature)


class LiveLogits(Distiller):
    """The teacher's whole distribution, computed for every batch."""

    def __init__(self, config: DistillationConfig, teacher: LanguageModel) -> None:
        super().__init__(config)
        self._teacher = teacher
        self._embedding = teacher.embedding.to(teacher.dtype)

    @torch.no_grad()
    def lesson(self, step: int, starts: npt.NDArray[np.int64], inputs: Tensor) -> Lesson:
        """The teacher's hidden states, to be turned into logits a chunk at a time."""
        hidden = self._teacher.hidden(inputs).flatten(0, 1).to(self._teacher.dtype)
        return Lesson(self.mixture(step), Live(hidden, self._embedding))


class CachedLogits(Distiller):
    """The teacher's best tokens, read from a cache."""

    def __init__(self, config: DistillationConfig, cache: SoftTargets) -> None:
        super().__init__(config)
        self._cache = cache

    def lesson(self, step: int, starts: npt.NDArray[np.int64], inputs: Tensor) -> Lesson:
        """The k best tokens, and the tail."""
        tokens, log_probabilities = self._cache.at(starts)
        signal = TopK(tokens.to(inputs.device), log_probabilities.to(inputs.device))
        return Lesson(self.mixture(step), signal)


class Features(Distiller):
    """The teacher's residual stream, after the layers that match the student's.

    Layer l of the student's L goes with layer l * L_teacher / L of the teacher, rounded up
    (FitNets' hints, Romero et al. 2015, arXiv 1412.6550, at every layer).
    """

    def __init__(
        self, config: DistillationConfig, teacher: LanguageModel, student_layers: int
    ) -> None:
        super().__init__(config)
        self._teacher = teacher
        layers = len(teacher.blocks)
        self._matched = [
            -(-layer * layers // student_layers) for layer in range(1, student_layers + 1)
        ]

    @torch.no_grad()
    def lesson(self, step: int, starts: npt.NDArray[np.int64], inputs: Tensor) -> Lesson:
        """One state for each of the student's layers."""
        states: list[Tensor | None] = []
        self._teacher.hidden(inputs, states=states)
        matched = [state for layer in self._matched if (state := states[layer - 1]) is not None]
        return Lesson(self.mixture(step), states=matched)


def make_distiller(
    config: TrainConfig,
    teacher: Teacher,
    splits: Splits,
    device: torch.device,
    say: Callable[[str], None],
    alive: Callable[[], None],
) -> Distiller:
    """Make what `config.distillation` asks for, and the cache of `top_k` where there is none.

    `alive` is called often while that takes time. Raises ConfigError for a cache that is too large,
    and CheckpointError where no checkpoint of the teacher can be read.
    """
    distillation = config.distillation
    model = _load(teacher, len(splits.vocabulary), config).to(device)
    if distillation.kind == "features":
        return Features(distillation, model, config.model.layers)
    if distillation.top_k is None:
        return LiveLogits(distillation, model)
    cache = _cache(config, model, splits, distillation.top_k)
    cache.build(model, distillation.cache_limit_bytes, say, alive)
    return CachedLogits(distillation, cache)


def projection_width(config: TrainConfig, teacher: Teacher | None) -> int | None:
    """The teacher's width, if its states are learned from and the student's width differs."""
    if teacher is None or config.distillation.kind != "features":
        return None
    width = teacher.config.model.d_model
    return None if width == config.model.d_model else width


def _load(teacher: Teacher, vocabulary: int, config: TrainConfig) -> LanguageModel:
    # Frozen; it computes in the student's precision.
    model = LanguageModel(
        teacher.config.model, vocabulary, teacher.config.data.context, DTYPES[config.precision]
    )
    weights = newest_weights(teacher.folder / "checkpoints")
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.requires_grad_(False).eval()


def _cache(config: TrainConfig, teacher: LanguageModel, splits: Splits, k: int) -> SoftTargets:
    vocabulary, context = len(splits.vocabulary), config.data.context
    if k > vocabulary:
        raise ConfigError(
            f"distillation.top_k: {k} is more than the vocabulary's {vocabulary} tokens; "
            "use fewer, or no cache (top_k: null)"
        )
    weights = weights_digest(teacher.state_dict())
    content = [FORMAT, weights, splits.folder.name, context, k, config.precision]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    path = splits.folder.parent / "soft-targets" / f"top-{k}-{key}.bin"
    return SoftTargets(path, splits.tokens("train"), context, vocabulary, k)
