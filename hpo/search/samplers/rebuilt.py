"""Optuna's samplers as a ledger needs them: built anew for each trial, with no point twice."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    GridSampler,
    NSGAIIISampler,
    NSGAIISampler,
)
from optuna.trial import FrozenTrial, Trial

from hpo.errors import HpoError

BREEDINGS = 20  # tries to breed a new child; then a copy is taken, for a small space


class SpaceExhausted(HpoError):
    """Every point of the space was proposed before."""


def check_new(study: Study, trial: Trial) -> None:
    """Raise SpaceExhausted if what a finite sampler proposes for `trial` was proposed before."""
    *earlier, asked = study.get_trials(deepcopy=False)[: trial.number + 1]
    enqueued = "fixed_params" in asked.system_attrs
    # The grid does not know of enqueued points, and may propose them again.
    of_grid = "grid_id" in asked.system_attrs
    proposed = [other for other in earlier if ("grid_id" in other.system_attrs) == of_grid]
    if not enqueued and any(other.params == asked.params for other in proposed):
        raise SpaceExhausted


class Delegate(BaseSampler, ABC):
    """A sampler that lets another one propose, and may show it a changed view of the study."""

    @abstractmethod
    def _sampler(self, trial: FrozenTrial) -> BaseSampler:
        """Return the sampler that proposes for `trial`."""

    def _shown(self, study: Study) -> Study:
        """Return the study that proposals are made from."""
        return study

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Any:
        return self._sampler(trial).infer_relative_search_space(self._shown(study), trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, *space: Any) -> Any:
        return self._sampler(trial).sample_relative(self._shown(study), trial, *space)

    def sample_independent(self, study: Study, trial: FrozenTrial, *parameter: Any) -> Any:
        return self._sampler(trial).sample_independent(self._shown(study), trial, *parameter)

    # These two get the study itself: what they write there is the sampler's own.
    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._sampler(trial).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, *end: Any) -> None:
        self._sampler(trial).after_trial(study, trial, *end)


class RebuiltSampler(Delegate):
    """Another sampler, built anew for each trial with a seed from (seed, trial number)."""

    def __init__(self, build: Callable[[int], BaseSampler], seed: int) -> None:
        self._build = build
        self._seed = seed
        self._current: tuple[int, BaseSampler] | None = None

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Call the other sampler, which is built anew and has drawn nothing yet."""
        self._current = None  # this trial's may have drawn already, in a commit that was refused
        super().before_trial(study, trial)

    def _sampler(self, trial: FrozenTrial) -> BaseSampler:
        if self._current is None or self._current[0] != trial.number:
            with warnings.catch_warnings():
                # Optuna says "experimental" again for every trial.
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._current = trial.number, self._build(trial_seed(self._seed, trial.number))
        return self._current[1]


def trial_seed(seed: int, number: int) -> int:
    """Return the seed of a trial's own random numbers."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


class _NeverStops:
    # Optuna's exhaustive samplers end `Study.optimize`, and raise outside of it. Here the
    # controller notices that a point comes again, and ends the study.
    def after_trial(self, *_: Any, **__: Any) -> None:
        pass


class GridOnce(_NeverStops, GridSampler):
    """Optuna's grid, which leaves the end of the study to the controller."""

    def __init__(self, values: Mapping[str, list[Any]], seed: int, other: BaseSampler) -> None:
        super().__init__(values, seed)
        self._other = other

    def sample_independent(self, study: Study, trial: FrozenTrial, *parameter: Any) -> Any:
        # An enqueued trial is not on the grid; the values that it leaves out are drawn.
        source: Any = super() if "grid_id" in trial.system_attrs else self._other
        return source.sample_independent(study, trial, *parameter)


class BruteForceOnce(_NeverStops, BruteForceSampler):
    """Optuna's brute force, which leaves the end of the study to the controller."""


class _NoCopies:
    # To be inherited before an Optuna genetic sampler, which draws new numbers for every child.
    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        # A dimension of one value has no place in the relative space.
        earlier = [
            {name: value for name, value in other.params.items() if name in search_space}
            for other in study.get_trials(deepcopy=False)[: trial.number]
        ]
        child: dict[str, Any] = {}
        for _ in range(BREEDINGS):
            child = super().sample_relative(study, trial, search_space)  # type: ignore[misc]
            if child not in earlier:
                break
        return child


class NSGA2WithoutCopies(_NoCopies, NSGAIISampler):
    """Optuna's NSGA-II, which breeds no earlier trial again."""


class NSGA3WithoutCopies(_NoCopies, NSGAIIISampler):
    """Optuna's NSGA-III, which breeds no earlier trial again."""
