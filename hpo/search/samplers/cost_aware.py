"""TPE that prefers improvement per device-second (`sampler: {name: tpe, cost_aware: true}`).

It goes by expected improvement per unit cost (Snoek et al. 2012, section 3.2): of TPE's candidates
it proposes the one with the largest EI / predicted device-seconds. A trial's cost is its user
attribute `device_seconds`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

Samples = dict[str, np.ndarray]  # a parameter's values in Optuna's internal representation


class CostModel:
    """A ridge regression of log-seconds on every dimension by itself, so that costs multiply.

    A number enters as its place in its range (of logarithms, if it is searched so) and the square
    of that, a choice as an indicator. Only COMPLETE trials count: what ended early cost less.
    """

    def __init__(self, space: dict[str, BaseDistribution], samples: Samples, seconds: Any) -> None:
        self._space = space
        features, logs = self._features(samples), np.log(np.maximum(seconds, 1e-9))
        self._mean = logs.mean()
        penalty = 1e-2 * np.eye(features.shape[1])
        self._weights = np.linalg.solve(
            features.T @ features + penalty, features.T @ (logs - self._mean)
        )

    def log_seconds(self, samples: Samples) -> np.ndarray:
        """Return the predicted log device-seconds of a whole trial at each of `samples`."""
        return np.asarray(self._features(samples) @ self._weights + self._mean)

    def _features(self, samples: Samples) -> np.ndarray:
        columns = []
        for name, distribution in sorted(self._space.items()):
            values = np.asarray(samples[name], dtype=float)
            if isinstance(distribution, CategoricalDistribution):
                columns += [values == choice for choice in range(len(distribution.choices))]
                continue
            scale = np.log if getattr(distribution, "log", False) else np.asarray
            low, high = (scale(float(end)) for end in (distribution.low, distribution.high))  # type: ignore[attr-defined]
            place = 2 * (scale(values) - low) / max(high - low, 1e-12) - 1
            columns += [np.ones_like(place), place, place**2]
        return np.stack(columns, axis=1).astype(float)


class CostAwareTPESampler(TPESampler):
    """Optuna's TPE, which chooses among its candidates by their cost too."""

    _costs: CostModel | None = None
    _good = 0.1  # the share of trials that TPE takes for good ones

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        self._costs = self._fitted(study, finished, search_space)
        self._good = min(math.ceil(0.1 * len(finished)), 25) / len(finished)  # Optuna's default
        return super()._sample(study, trial, search_space)

    def _fitted(
        self, study: Study, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution]
    ) -> CostModel | None:
        timed = [
            trial
            for trial in trials
            if trial.state is TrialState.COMPLETE
            and "device_seconds" in trial.user_attrs
            and search_space.keys() <= trial.params.keys()
        ]
        if len(timed) < 2:
            return None
        seconds = [  # for one training
            trial.user_attrs["device_seconds"] / trial.user_attrs.get("repeats", 1)
            for trial in timed
        ]
        return CostModel(search_space, self._get_internal_repr(timed, search_space, study), seconds)

    def _compute_acquisition_func(
        self, samples: Samples, mpe_below: Any, mpe_above: Any
    ) -> np.ndarray:
        ratio = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        if self._costs is None:
            return ratio
        # EI is proportional to 1 / (good + (1 - good) g / l) (Bergstra et al. 2011, equation 2).
        log_ei = -np.logaddexp(np.log(self._good), np.log1p(-self._good) - ratio)
        return np.asarray(log_ei - self._costs.log_seconds(samples))
