"""The learning rate as a pure function of the step: no scheduler object, so nothing to resume."""

from __future__ import annotations

import math

import numpy as np

from trainer.config.sections import OptimConfig


def learning_rate(optim: OptimConfig, steps: int, step: int) -> float:
    """Learning rate of the 0-based optimizer step `step` in a run of `steps`.

    It rises linearly from 0 and reaches `lr` in `warmup_steps` steps; then it stays there
    (`constant`) or follows half a cosine (`cosine`, Loshchilov & Hutter 2017, arXiv 1608.03983)
    that would reach `lr * lr_final_fraction` at step `steps`, the one after the last. `piecewise`
    uses straight lines through `points` instead of `lr`, from step 0 on, and is constant outside.
    """
    peak = optim.lr
    if optim.schedule == "piecewise":
        assert optim.points is not None, "its config says so"
        fractions, rates = zip(*optim.points, strict=True)
        peak = float(np.interp(step / steps, fractions, rates))
    if step < optim.warmup_steps:
        return peak * (step + 1) / optim.warmup_steps
    if optim.schedule != "cosine":
        return peak
    progress = (step - optim.warmup_steps) / (steps - optim.warmup_steps)
    remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (optim.lr_final_fraction + (1.0 - optim.lr_final_fraction) * remaining)
