"""The engine that trains under DeepSpeed's ZeRO."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig
from trainer.engine import zero3
from trainer.engine.base import Engine
from trainer.engine.distributed import World, load_deepspeed
from trainer.engine.loss_scale import skip_overflows
from trainer.model.layerdrop import Mask
from trainer.model.losses import Lesson

# DeepSpeed allocates a bucket of this size at every backward and copies gradients into it; larger
# gradients are reduced where they are. A small model on one rank is 3 % faster without the copies.
# Several ranks are 5 % faster with few large reductions, a large model on one rank by some per cent
# too (docs/log.md).
_BUCKET_NUMBERS = 5_000_000
_SMALL_BUCKET_NUMBERS = 500_000
_SMALL_MODEL_NUMBERS = 10_000_000


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
            self._deepspeed, *_ = load_deepspeed().initialize(
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
        # DeepSpeed itself also prepares its access to the optimizer's state in a first step.
        token = torch.zeros((1, 1), dtype=torch.int64, device=self._world.device)
        for _ in range(self._config.optim.accumulation):
            self._deepspeed.backward(self._deepspeed(token, token)[0] * 0.0)
            self._deepspeed.step()


def _settings(config: TrainConfig, world: World, parameters: int) -> dict[str, Any]:
    """The config for DeepSpeed: our settings, and over them the user's `deepspeed` section."""
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
            # With gloo, reduce each gradient to the rank that owns it, not to all ranks.
            "use_multi_rank_bucket_allreduce": world.device.type == "cuda",
        },
        "zero_force_ds_cpu_optimizer": False,  # its Adam would have to be compiled first
        # The train config checks which optimizers fit which stage.
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
