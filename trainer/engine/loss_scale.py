"""Dynamic loss scaling, without which small gradients vanish in fp16.

Mixed-precision training (Micikevicius et al. 2018, arXiv 1710.03740) over fp32 weights: the loss
is multiplied by a power of two, and each gradient is divided by it where it reaches its weight,
before anything adds, reduces, clips or reads it. So nothing else, no ZeRO stage and no optimizer,
knows that there is a scale. Nothing here takes a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_FIRST_SCALE = 2**16
_GROWTH_STEPS = 1000  # steps in a row without an overflow that double the scale


class LossScale:
    """The scale: an overflow halves it and skips the step; many steps without one double it."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        """Unscale the gradients of `weights`, which are fp32, from now on."""
        self._scale = _FIRST_SCALE
        self._clean_steps = 0  # since the scale last changed
        self.overflow_steps = 0  # of the whole run
        self.exhausted = False  # the last step overflowed at the smallest scale
        for weight in weights:
            weight.register_hook(self._unscaled)  # type: ignore[no-untyped-call]

    def scaled(self, loss: Tensor) -> Tensor:
        """The value to call backward on instead of `loss`."""
        return loss * self._scale

    def update(self, applied: bool) -> None:
        """Count a step that was `applied`, or skipped because a gradient was not finite."""
        self.exhausted = not applied and self._scale == 1
        if applied:
            self._clean_steps += 1
            if self._clean_steps == _GROWTH_STEPS:
                self._scale, self._clean_steps = self._scale * 2, 0
            return
        self._scale, self._clean_steps = max(self._scale // 2, 1), 0
        self.overflow_steps += 1

    def state(self) -> Tensor:
        """All that a resumed run needs, for `load_state`: shape (3,), int64."""
        return torch.tensor([self._scale, self._clean_steps, self.overflow_steps])

    def load_state(self, state: Tensor) -> None:
        """Go on from `state`."""
        self._scale, self._clean_steps, self.overflow_steps = state.tolist()

    def _unscaled(self, gradient: Tensor) -> Tensor:
        return gradient / self._scale


def skip_overflows(optimizer: Optimizer) -> None:
    """Make `optimizer` skip its step where a gradient is not finite, and tell DeepSpeed of it.

    ZeRO does so by itself. Without ZeRO (stage 0) DeepSpeed only reads `optimizer.overflow`.
    """
    step = optimizer.step

    def step_if_finite(*args: Any, **kwargs: Any) -> None:
        weights = (weight for group in optimizer.param_groups for weight in group["params"])
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        overflow = not torch.nn.utils.get_total_norm(gradients).isfinite()
        optimizer.overflow = overflow  # type: ignore[attr-defined]
        if not overflow:
            step(*args, **kwargs)

    optimizer.step = step_if_finite  # type: ignore[assignment,method-assign]
