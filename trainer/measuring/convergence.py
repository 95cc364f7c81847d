"""Convergence: how soon a run reached a target perplexity. It only reads what evaluations found."""

from __future__ import annotations

from collections.abc import Sequence


def to_target(history: Sequence[dict[str, float]], target_ppl: float | None) -> dict[str, float]:
    """Steps and train seconds to the first evaluation whose `valid_ppl` is `target_ppl` or less.

    `history` has every evaluation's metrics, oldest first. Empty if there is no such evaluation.
    """
    if target_ppl is None:
        return {}
    there = (metrics for metrics in history if metrics["valid_ppl"] <= target_ppl)
    return next(
        ({"steps_to_target": m["step"], "seconds_to_target": m["train_seconds"]} for m in there),
        {},
    )
