"""What all engines share: an engine takes the optimizer steps of one training, and returns losses.

It decides no schedule, mask or batch, and touches no file. The kinds are `deepspeed.py`, `ddp.py`.
"""

from __future__ import annotations

import hashlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from trainer.config.train import TrainConfig
from trainer.data.batches import Batch
from trainer.engine.distributed import World
from trainer.engine.loss_scale import LossScale
from trainer.engine.optimizers import make_optimizer
from trainer.engine.state import full_state, load_full_state, reset_step_counts
from trainer.model.compilation import compile_blocks
from trainer.model.layerdrop import Mask
from trainer.model.losses import Lesson
from trainer.model.transformer import LanguageModel
from trainer.teaching.distillation import Distiller


class Engine(ABC):
    """A model in training on this rank, with its optimizer, its shares of batches and its dropout.

    A layer dropped in every micro step of a step has gradients of zero there, not None: AdamW still
    decays its weights and moves them by their momentum. In fp16 a step whose gradients overflow is
    skipped, and the loss scale of the next steps is smaller. All engines take the same steps, up to
    rounding, and can load each other's state.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        model: LanguageModel,
        distiller: Distiller | None = None,
    ) -> None:
        """Raises ConfigError for `model.compile` without a compiler, and what `_wrap` raises."""
        self.model = model
        self._distiller = distiller
        self._world = world
        self._config = config
        if config.model.compile:
            compile_blocks(model.blocks, world.device)
        self._optimizer = make_optimizer(config.optim, model)
        self._loss_scale = LossScale(model.parameters()) if config.precision == "fp16" else None
        self._generator = (
            torch.cuda.default_generators[world.local_rank]
            if world.device.type == "cuda"
            else torch.default_generator
        )
        self._wrap()

    def step(self, step: int, batch: Batch, masks: Sequence[Mask], lr: float) -> Tensor:
        """Take optimizer step `step` (0-based) on this rank's share of the whole step's `batch`.

        `masks` has a mask for each micro step. Returns this rank's mean NLL and teacher's term:
        (2,), on the device, nats per token.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        last = len(masks) - 1
        terms = [
            self._micro_step(
                step, batch, self._share(batch, micro_step, len(masks)), mask, micro_step == last
            )
            for micro_step, mask in enumerate(masks)
        ]
        if self._loss_scale is not None:
            self._loss_scale.update(self.applied)
        return terms[0] if len(terms) == 1 else torch.stack(terms).mean(dim=0)

    @property
    @abstractmethod
    def applied(self) -> bool:
        """Whether the last step moved the weights. A gradient that is not finite prevents it."""

    @property
    def can_go_on(self) -> bool:
        """Whether the last step was applied, or the next one may be, at a smaller loss scale."""
        return self.applied or (self._loss_scale is not None and not self._loss_scale.exhausted)

    def counts(self) -> dict[str, float]:
        """Counts over the whole run, by the names of their metrics."""
        return {"overflow_steps": self._loss_scale.overflow_steps} if self._loss_scale else {}

    def whole_weights(self) -> AbstractContextManager[Any]:
        """A context in which every rank has all weights, to evaluate; all ranks enter together."""
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """The state for `load_state`, on rank 0; all ranks call together, after the first step."""
        if not self._optimizer.state:  # every step so far overflowed
            self._make_optimizer_state()
        state = full_state(self.model, self._optimizer, self._world)
        if self._loss_scale is not None and self._world.rank == 0:
            state["loss_scale"] = self._loss_scale.state()
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from rank 0's `state`; that of the other ranks is ignored."""
        self._make_optimizer_state()
        load_full_state(self.model, self._optimizer, state, self._world)
        if self._loss_scale is not None:
            scale = self._world.on_rank_0(lambda: state["loss_scale"])
            self._loss_scale.load_state(scale)

    @abstractmethod
    def close(self) -> None:
        """Remove the hooks from the model, and free memory."""

    @abstractmethod
    def _wrap(self) -> None:
        """Wrap model and optimizer for training among the ranks; the constructor ends with this."""

    @abstractmethod
    def _learn(
        self, last: bool, inputs: Tensor, targets: Tensor, mask: Mask, lesson: Lesson | None
    ) -> Tensor:
        """Add a micro step's gradients and return its terms; after the `last`, move the weights."""

    @abstractmethod
    def _prime(self) -> None:
        """Take an optimizer step without gradients, at the optimizer's learning rate."""

    def _make_optimizer_state(self) -> None:
        # A step that changes nothing, and is not counted.
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        self._prime()
        reset_step_counts(self._optimizer)

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self._loss_scale is None else self._loss_scale.scaled(loss)

    def _share(self, batch: Batch, micro_step: int, micro_steps: int) -> slice:
        # This rank's rows of the micro step.
        rows = len(batch.tokens) // (micro_steps * self._world.ranks)
        first = (micro_step * self._world.ranks + self._world.rank) * rows
        return slice(first, first + rows)

    def _micro_step(self, step: int, batch: Batch, rows: slice, mask: Mask, last: bool) -> Tensor:
        tokens = torch.from_numpy(batch.tokens[rows]).to(self._world.device)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        lesson = None
        if self._distiller is not None:
            lesson = self._distiller.lesson(step, batch.starts[rows], inputs)
        if self._config.model.dropout:
            self._generator.manual_seed(_dropout_seed(self._config.seed, step, rows.start))
        return self._learn(last, inputs, targets, mask, lesson)


def _dropout_seed(seed: int, step: int, first_row: int) -> int:
    # The place of the share in the data counts, not its rank: two ranks then draw what two micro
    # steps of one rank draw. Hashed, because torch's CPU generator only uses the low 32 bits.
    position = struct.pack("<QQQ", seed, step, first_row)
    return int.from_bytes(hashlib.blake2b(position, digest_size=8).digest(), "little")
