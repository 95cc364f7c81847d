"""Samplers by name, rebuilt from the ledger for every trial.

A sampler keeps nothing between trials: its random numbers come from (seed, trial number) and all
else from the ledger. A resumed study so proposes what the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from hpo.ax_config import AxConfig
from trainer.settings import Section


class SamplerConfig(Section):
    """Which sampler proposes, and the seed of its random numbers."""

    name: Literal["random", "tpe"] = "tpe"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    startup_trials: Annotated[int, Field(ge=1)] = 10  # tpe: finished trials before it models


def make_sampler(config: SamplerConfig | AxConfig) -> BaseSampler:
    """The sampler of a study file."""
    if isinstance(config, AxConfig):
        return config.make(0, {})
    if config.name == "random":
        return RebuiltSampler(lambda seed: RandomSampler(seed=seed), config.seed)
    return RebuiltSampler(
        lambda seed: TPESampler(seed=seed, n_startup_trials=config.startup_trials), config.seed
    )


class RebuiltSampler(BaseSampler):
    """Another sampler, built anew for each trial with a seed from (seed, trial number)."""

    def __init__(self, build: Callable[[int], BaseSampler], seed: int) -> None:
        self._build = build
        self._seed = seed
        self._current: tuple[int, BaseSampler] | None = None

    def _for(self, trial: FrozenTrial) -> BaseSampler:
        if self._current is None or self._current[0] != trial.number:
            seed = np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0]
            self._current = trial.number, self._build(int(seed))
        return self._current[1]

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """As the sampler of this trial does."""
        return self._for(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler of this trial does."""
        return self._for(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """As the sampler of this trial does."""
        return self._for(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """As the sampler of this trial does."""
        self._for(trial).before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """As the sampler of this trial does."""
        self._for(trial).after_trial(study, trial, state, values)
