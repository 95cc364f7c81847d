"""Search spaces and values in Ax's terms: numbers on even scales, and choices by their index.

A value of a stepped range is the number of its steps from the lowest. Ax is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

Space = Mapping[str, BaseDistribution]


def range_of(each: BaseDistribution) -> tuple[float, float, bool]:
    """Return the lowest and highest value in Ax's terms, and whether the scale is logarithmic."""
    assert isinstance(each, FloatDistribution | IntDistribution)
    if _stepped(each):
        assert each.step is not None
        return 0, round((each.high - each.low) / each.step), False
    return each.low, each.high, each.log


def _stepped(each: FloatDistribution | IntDistribution) -> bool:
    return each.step is not None and not (isinstance(each, IntDistribution) and each.step == 1)


def points_in(space: Space) -> float:
    """Return how many points `space` has: infinitely many if a range has no steps."""
    points = 1.0
    for each in space.values():
        if isinstance(each, CategoricalDistribution):
            points *= len(each.choices)
        else:
            low, high, _ = range_of(each)
            points *= high - low + 1 if isinstance(low, int) else math.inf
    return points


def encoded(each: BaseDistribution, value: Any) -> Any:
    """Return Optuna's value in Ax's terms."""
    internal = each.to_internal_repr(value)
    if isinstance(each, CategoricalDistribution):
        return str(int(internal))
    assert isinstance(each, FloatDistribution | IntDistribution)
    if _stepped(each):
        assert each.step is not None
        return round((internal - each.low) / each.step)
    return int(internal) if isinstance(each, IntDistribution) else internal


def decoded(each: BaseDistribution, value: Any) -> Any:
    """Return Ax's value in Optuna's terms, inside the bounds."""
    if isinstance(each, CategoricalDistribution):
        return each.choices[int(value)]
    assert isinstance(each, FloatDistribution | IntDistribution)
    if _stepped(each):
        assert each.step is not None
        value = each.low + int(value) * each.step
    value = min(max(value, each.low), each.high)
    return int(value) if isinstance(each, IntDistribution) else float(value)


def middle(each: BaseDistribution) -> Any:
    """Return the middle of the range in Ax's terms, or the first choice."""
    if isinstance(each, CategoricalDistribution):
        return "0"
    low, high, log = range_of(each)
    middle = math.sqrt(low * high) if log else (low + high) / 2
    return round(middle) if isinstance(low, int) else middle


def contains(each: BaseDistribution, value: Any) -> bool:
    """Return whether the dimension, as it is now, has the value."""
    try:  # Optuna checks the parameters of a new trial against their distributions
        create_trial(state=TrialState.RUNNING, params={"it": value}, distributions={"it": each})
    except (ValueError, TypeError):  # outside the range, of another type, or no such choice
        return False
    return True


def quasi_random(space: Space, seed: int, number: int) -> dict[str, Any]:
    """Return point `number` of the scrambled Sobol sequence of `seed` over `space`."""
    from scipy.stats import qmc

    engine = qmc.Sobol(len(space), scramble=True, rng=seed)
    (point,) = engine.fast_forward(number).random(1) if number else engine.random(1)
    return {
        name: _at(each, share) for (name, each), share in zip(space.items(), point, strict=True)
    }


def _at(each: BaseDistribution, share: float) -> Any:
    """Return the value below which `share` of the range lies."""
    if isinstance(each, CategoricalDistribution):
        return each.choices[int(share * len(each.choices))]
    low, high, log = range_of(each)
    if isinstance(low, int):
        # An integer stands for the interval around it.
        low, high = low - 0.5, high + 0.5
    value = low * (high / low) ** share if log else low + (high - low) * share
    return decoded(each, round(value) if isinstance(range_of(each)[0], int) else value)
