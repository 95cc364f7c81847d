"""The study file's settings of the Ax sampler; they are read without importing Ax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from optuna.samplers import BaseSampler
from pydantic import Field

from hpo.space import Dimension
from trainer.settings import Section


class AxConfig(Section):
    """Ax's Bayesian optimization; seeded by trial, its quasi-random start by the seed alone."""

    name: Literal["ax"]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    startup_trials: Annotated[int, Field(ge=2)] = 10  # complete trials before it models

    cannot: ClassVar[frozenset[str]] = frozenset()
    finite: ClassVar[bool] = False

    def make(self, trial_seed: int, space: Mapping[str, Dimension]) -> BaseSampler:
        """Our own, which draws its seeds itself."""
        from hpo.ax_sampler import AxSampler

        return AxSampler(self.seed, self.startup_trials)
