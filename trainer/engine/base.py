"""One training's engine, and DeepSpeed's: optimizer steps in, losses out.

It decides no schedule, mask or batch, and touches no file. The plain arm is in `ddp.py`.
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

from trainer import zero3
from trainer.batches import Batch
from trainer.compilation import compile_blocks
from trainer.config import TrainConfig
from trainer.distillation import Distiller
from trainer.distributed import World, deepspeed
from trainer.layerdrop import Mask
from trainer.loss_scale import LossScale, skip_overflows
from trainer.losses import Lesson
from trainer.model import LanguageModel
from trainer.optimizers import make_optimizer
from trainer.settings import ConfigError
from trainer.state import full_state, load_full_state, reset_step_counts

# DeepSpeed allocates this at every backward and copies gradients into it; larger ones it reduces
# where they are. A small model alone is 3 % faster without the copies; among ranks few large
# reductions win by 5 %, and a large model alone by some per cent too (docs/log.md).
_BUCKET_NUMBERS = 5_000_000
_SMALL_BUCKET_NUMBERS = 500_000
_SMALL_MODEL_NUMBERS = 10_000_000


class Engine(ABC):
    """A model in training on this rank: its optimizer, batch shares and dropout by position.

    A layer dropped in every micro step of a step has zero gradients there, not none: AdamW still
    decays its weights and moves them by their momentum. In fp16 a step whose gradients overflow is
    skipped, and the next ones are scaled less. All engines take the same steps, up to rounding,
    and each other's state.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        model: LanguageModel,
        distiller: Distiller | None = None,
    ) -> None:
        """Raises ConfigError for `model.compile` where nothing compiles, and as `_wrap` does."""
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
        """Whether the last step moved the weights: not if a gradient was not finite."""

    @property
    def can_go_on(self) -> bool:
        """Whether the last step was applied, or the next one may be, at a smaller loss scale."""
        return self.applied or (self._loss_scale is not None and not self._loss_scale.exhausted)

    def counts(self) -> dict[str, float]:
        """What this engine counts over the whole run, by the names of metrics."""
        return {"overflow_steps": self._loss_scale.overflow_steps} if self._loss_scale else {}

    def whole_weights(self) -> AbstractContextManager[Any]:
        """Within, every rank has all weights, to evaluate with; all ranks enter together."""
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """What `load_state` takes, on rank 0; all ranks ask together, after the first step."""
        if not self._optimizer.state:  # every step so far overflowed
            self._make_optimizer_state()
        state = full_state(self.model, self._optimizer, self._world)
        if self._loss_scale is not None and self._world.rank == 0:
            state["loss_scale"] = self._loss_scale.state()
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from rank 0's `state`; the other ranks' is not looked at."""
        self._make_optimizer_state()
        load_full_state(self.model, self._optimizer, state, self._world)
        if self._loss_scale is not None:
            scale = self._world.on_rank_0(lambda: state["loss_scale"])
            self._loss_scale.load_state(scale)

    @abstractmethod
    def close(self) -> None:
        """Let hooks on the model and memory go."""

    @abstractmethod
    def _wrap(self) -> None:
        """Put around model and optimizer what trains them among the ranks: the end of building."""

    @abstractmethod
    def _learn(
        self, last: bool, inputs: Tensor, targets: Tensor, mask: Mask, lesson: Lesson | None
    ) -> Tensor:
        """The terms of a micro step, its gradients added; after the `last`, weights are moved."""

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


class DeepSpeedEngine(Engine):
    """Training under ZeRO, which skips a step whose gradients are not finite."""

    @property
    def applied(self) -> bool:
        return bool(self._deepspeed.was_step_applied())

    def whole_weights(self) -> AbstractContextManager[Any]:
        if self._config.deepspeed.zero_stage < 3:
            return nullcontext()
        return zero3.whole_weights(self._deepspeed)

    def close(self) -> None:
        self._deepspeed.destroy()
        if self._config.deepspeed.zero_stage == 3:
            zero3.forget_engines()

    def _wrap(self) -> None:
        """Raises ConfigError for settings under `deepspeed` that DeepSpeed refuses."""
        config, model = self._config, self.model
        model.touch_skipped = config.deepspeed.keeps_old_gradients
        if self._loss_scale is not None and config.deepspeed.zero_stage == 0:
            skip_overflows(self._optimizer)
        settings = _settings(config, self._world, sum(p.numel() for p in model.parameters()))
        try:
            self._deepspeed, *_ = deepspeed.initialize(
                model=model, optimizer=self._optimizer, config=settings, dist_init_required=False
            )
        except (ValueError, AssertionError) as error:
            if not config.deepspeed.model_extra:
                raise
            raise ConfigError(f"deepspeed: {' '.join(str(error).split())}") from error

    def _learn(
        self, last: bool, inputs: Tensor, targets: Tensor, mask: Mask, lesson: Lesson | None
    ) -> Tensor:
        loss, terms = self._deepspeed(inputs, targets, mask, lesson)
        self._deepspeed.backward(self._scaled(loss))
        self._deepspeed.step()  # it counts the micro steps itself
        return terms  # type: ignore[no-any-return]

    def _prime(self) -> None:
        # DeepSpeed, too, makes its way to the optimizer's state in a first step.
        token = torch.zeros((1, 1), dtype=torch.int64, device=self._world.device)
        for _ in range(self._config.optim.accumulation):
            self._deepspeed.backward(self._deepspeed(token, token)[0] * 0.0)
            self._deepspeed.step()


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
        # Which optimizers fit which stage is the train config's to check.
        "zero_allow_untested_optimizer": True,
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
