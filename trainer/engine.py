"""One training's DeepSpeed engine: optimizer steps in, losses out.

It decides no schedule, mask or batch, and touches no file.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer import zero3
from trainer.compilation import compile_blocks
from trainer.config import TrainConfig
from trainer.distributed import World, deepspeed
from trainer.layerdrop import Mask
from trainer.loss_scale import LossScale, skip_overflows
from trainer.model import LanguageModel
from trainer.settings import ConfigError
from trainer.state import full_state, load_full_state, reset_step_counts

# DeepSpeed allocates this at every backward and copies gradients into it; larger ones it reduces
# where they are. A small model alone is 3 % faster without the copies; among ranks few large
# reductions win by 5 %, and a large model alone by some per cent too (docs/log.md).
_BUCKET_NUMBERS = 5_000_000
_SMALL_BUCKET_NUMBERS = 500_000
_SMALL_MODEL_NUMBERS = 10_000_000


class Engine:
    """A model in training on this rank: AdamW under ZeRO, batch shares and dropout by position.

    A layer dropped in every micro step of a step has zero gradients there, not none: AdamW still
    decays its weights and moves them by their momentum. In fp16 a step whose gradients overflow is
    skipped, and the next ones are scaled less.
    """

    def __init__(self, config: TrainConfig, world: World, model: LanguageModel) -> None:
        """Raises ConfigError for settings that DeepSpeed refuses, or `compile` with no compiler."""
        self.model = model
        model.touch_skipped = config.deepspeed.keeps_old_gradients
        if config.model.compile:
            compile_blocks(model.blocks, world.device)
        self._world = world
        self._config = config
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.optim.lr,
            betas=config.optim.betas,
            weight_decay=config.optim.weight_decay,
            fused=True,
        )
        self._loss_scale: LossScale | None = None
        if config.precision == "fp16":
            self._loss_scale = LossScale(model.parameters())
            if config.deepspeed.zero_stage == 0:
                skip_overflows(self._optimizer)
        settings = _settings(config, world, sum(p.numel() for p in model.parameters()))
        try:
            self._deepspeed, *_ = deepspeed.initialize(
                model=model, optimizer=self._optimizer, config=settings, dist_init_required=False
            )
        except (ValueError, AssertionError) as error:
            if not config.deepspeed.model_extra:
                raise
            raise ConfigError(f"deepspeed: {' '.join(str(error).split())}") from error
        self._generator = (
            torch.cuda.default_generators[world.local_rank]
            if world.device.type == "cuda"
            else torch.default_generator
        )

    def step(
        self, step: int, batch: npt.NDArray[np.int64], masks: Sequence[Mask], lr: float
    ) -> Tensor:
        """Take optimizer step `step` (0-based) on this rank's share of `batch`.

        `batch` is the whole step's, (sequences, context + 1); `masks` has a mask for each micro
        step. Returns this rank's mean loss: a scalar on the device, fp32, nats per token.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        losses = [
            self._micro_step(step, *self._share(batch, micro_step, len(masks)), mask)
            for micro_step, mask in enumerate(masks)
        ]
        if self._loss_scale is not None:
            self._loss_scale.update(self.applied)
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    @property
    def applied(self) -> bool:
        """Whether the last step moved the weights: ZeRO skips it if a gradient is not finite."""
        return bool(self._deepspeed.was_step_applied())

    @property
    def can_go_on(self) -> bool:
        """Whether the last step was applied, or the next one may be, at a smaller loss scale."""
        return self.applied or (self._loss_scale is not None and not self._loss_scale.exhausted)

    def counts(self) -> dict[str, float]:
        """What this engine counts over the whole run, by the names of metrics."""
        return {"overflow_steps": self._loss_scale.overflow_steps} if self._loss_scale else {}

    def whole_weights(self) -> AbstractContextManager[Any]:
        """Within, every rank has all weights, to evaluate with; all ranks enter together."""
        if self._config.deepspeed.zero_stage < 3:
            return nullcontext()
        return zero3.whole_weights(self._deepspeed)

    def state(self) -> dict[str, Tensor]:
        """What `load_state` takes, on rank 0; all ranks ask together, after the first step."""
        if not self._optimizer.state:  # every step so far overflowed
            self._prime()
        state = full_state(self.model, self._optimizer, self._world)
        if self._loss_scale is not None and self._world.rank == 0:
            state["loss_scale"] = self._loss_scale.state()
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from rank 0's `state`; the other ranks' is not looked at."""
        self._prime()
        load_full_state(self.model, self._optimizer, state, self._world)
        if self._loss_scale is not None:
            scale = self._world.on_rank_0(lambda: state["loss_scale"])
            self._loss_scale.load_state(scale)

    def close(self) -> None:
        """Let DeepSpeed's hooks and the memory go."""
        self._deepspeed.destroy()
        if self._config.deepspeed.zero_stage == 3:
            zero3.forget_engines()

    def _share(
        self, batch: npt.NDArray[np.int64], micro_step: int, micro_steps: int
    ) -> tuple[int, npt.NDArray[np.int64]]:
        # The first row of this rank's share of the micro step, and its rows.
        rows = len(batch) // (micro_steps * self._world.ranks)
        first = (micro_step * self._world.ranks + self._world.rank) * rows
        return first, batch[first : first + rows]

    def _micro_step(self, step: int, first: int, rows: npt.NDArray[np.int64], mask: Mask) -> Tensor:
        if self._config.model.dropout:
            self._generator.manual_seed(_dropout_seed(self._config.seed, step, first))
        tokens = torch.from_numpy(rows).to(self._world.device)
        loss: Tensor = self._deepspeed(tokens[:, :-1], tokens[:, 1:], mask)
        scaled = self._loss_scale.scaled(loss) if self._loss_scale else loss
        self._deepspeed.backward(scaled)
        self._deepspeed.step()
        return loss.detach()

    def _prime(self) -> None:
        # AdamW makes its state, and DeepSpeed its way to it, in a first step: one that changes
        # nothing, and is not counted.
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        token = torch.zeros((1, 1), dtype=torch.int64, device=self._world.device)
        for _ in range(self._config.optim.accumulation):
            self._deepspeed.backward(self._deepspeed(token, token) * 0.0)
            self._deepspeed.step()
        reset_step_counts(self._optimizer)


def _dropout_seed(seed: int, step: int, first_row: int) -> int:
    # Where the share lies in the data, not who has it: two ranks then draw what two micro steps
    # of one rank do. Hashed, because torch's CPU generator only looks at the low 32 bits.
    position = struct.pack("<QQQ", seed, step, first_row)
    return int.from_bytes(hashlib.blake2b(position, digest_size=8).digest(), "little")


def _settings(config: TrainConfig, world: World, parameters: int) -> dict[str, Any]:
    """What DeepSpeed is told: ours, and over it what the user's `deepspeed` section says."""
    sequences, accumulation = config.data.batch_size, config.optim.accumulation
    small_alone = world.ranks == 1 and parameters < _SMALL_MODEL_NUMBERS
    ours: dict[str, Any] = {
        "train_batch_size": sequences,
        "train_micro_batch_size_per_gpu": sequences // (world.ranks * accumulation),
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optim.grad_clip,
        "zero_optimization": {
            "stage": config.deepspeed.zero_stage,
            "reduce_bucket_size": _SMALL_BUCKET_NUMBERS if small_alone else _BUCKET_NUMBERS,
            # gloo: reduce each gradient to the rank that owns it, instead of everywhere.
            "use_multi_rank_bucket_allreduce": world.device.type == "cuda",
        },
        "zero_force_ds_cpu_optimizer": False,  # its Adam would have to be compiled first
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU at every step
    }
    return _merged(ours, config.deepspeed.model_extra or {})


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = _merged(below, value)
        merged[key] = value
    return merged
