"""Samplers by name, rebuilt from the ledger for every trial.

A sampler keeps nothing between trials: its random numbers come from (seed, trial number), or from
the seed alone where it needs one sequence for all trials. Everything else comes from the ledger. So
a resumed study proposes what the uninterrupted study would have proposed. What a sampler cannot do
is refused when the study is loaded.

No sampler is given a `constraints_func`: those that know constraints (tpe, gp, nsga2, nsga3,
botorch) read a trial's system attribute "constraints", which is written when the trial ends.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from pydantic import Field

from hpo.search.samplers.cma_es import CmaEsFromTrials
from hpo.search.samplers.cost_aware import CostAwareTPESampler
from hpo.search.samplers.rebuilt import (
    BruteForceOnce,
    GridOnce,
    NSGA2WithoutCopies,
    NSGA3WithoutCopies,
    RebuiltSampler,
)
from hpo.search.space import CategoricalDimension, Dimension, FloatDimension, Space
from trainer.config.sections import Fraction
from trainer.config.settings import ConfigError, Section

Trials = Annotated[int, Field(ge=1)]
Population = Annotated[int, Field(ge=2)]

MOST_LISTED = 100_000  # points, or values of a dimension, in a sampler that lists them


class SamplerSection(Section):
    """What every sampler has: the seed of its random numbers."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # of its random numbers

    # What the sampler ignores or cannot take: several "objectives", "constraints", "conditions"
    # (`when`), "categoricals" or "endless dimensions" (floats without a step).
    cannot: ClassVar[frozenset[str]] = frozenset()
    finite: ClassVar[bool] = False  # proposes every point of the space once, and then no other

    @abstractmethod
    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        """Return Optuna's sampler for one trial, whose `trial_seed` is of (seed, trial number)."""


class Random(SamplerSection):
    """Independent draws, seeded by trial."""

    name: Literal["random"]

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        return RandomSampler(seed=trial_seed)


class TPE(SamplerSection):
    """Tree-structured Parzen estimators (Bergstra et al. 2011), seeded by trial.

    Running trials count as bad ones, so that trials asked side by side differ.
    """

    name: Literal["tpe"] = "tpe"
    startup_trials: Trials = 10  # finished trials before it models
    multivariate: bool = True  # models the dimensions jointly, conditional ones by group
    candidates: Annotated[int, Field(ge=1)] = 24  # drawn and compared for each proposal
    cost_aware: bool = False  # prefers improvement per device-second

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        kind = CostAwareTPESampler if self.cost_aware else TPESampler
        return kind(
            seed=trial_seed,
            n_startup_trials=self.startup_trials,
            n_ei_candidates=self.candidates,
            multivariate=self.multivariate,
            group=self.multivariate and any(dimension.when for dimension in space.values()),
            constant_liar=True,
        )


class GP(SamplerSection):
    """A Gaussian process and expected (hypervolume) improvement, seeded by trial."""

    name: Literal["gp"]
    startup_trials: Trials = 10  # finished trials before it models
    cannot = frozenset({"conditions"})

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        return GPSampler(
            seed=trial_seed, n_startup_trials=self.startup_trials, warn_independent_sampling=False
        )


class BoTorch(SamplerSection):
    """BoTorch's Gaussian process, which takes running trials into account; seeded by trial."""

    name: Literal["botorch"]
    startup_trials: Trials = 10  # finished trials before it models
    cannot = frozenset({"conditions"})

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        # Imports torch, which the command line does without.
        from optuna_integration import BoTorchSampler

        sampler: BaseSampler = BoTorchSampler(
            seed=trial_seed, n_startup_trials=self.startup_trials, consider_running_trials=True
        )
        return sampler


class Ax(SamplerSection):
    """Ax's Bayesian optimization, seeded by trial; its quasi-random start by the seed alone."""

    name: Literal["ax"]
    startup_trials: Annotated[int, Field(ge=2)] = 10  # complete trials before it models

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        from hpo.search.samplers.ax import AxSampler

        return AxSampler(self.seed, self.startup_trials)


class CmaEs(SamplerSection):
    """CMA-ES (Hansen 2016), with its generations in the ledger. The first trial is random.

    It is seeded by the seed alone, because Optuna adds the trial's number itself.
    """

    name: Literal["cmaes"]
    population: Population | None = None  # trials in a generation; null: 4 + 3 ln(dimensions)
    margin: bool = False  # keeps stepped dimensions from getting stuck (Hamano et al. 2022)
    cannot = frozenset({"objectives", "constraints", "conditions", "categoricals"})

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        return CmaEsFromTrials(
            seed=self.seed,
            independent_sampler=RandomSampler(seed=trial_seed),
            popsize=self.population,
            with_margin=self.margin,
            warn_independent_sampling=False,
        )


class QMC(SamplerSection):
    """A low-discrepancy sequence; the next place in it is kept in the ledger.

    It is scrambled by the seed alone, or each trial would be of another sequence. The first trial
    is random.
    """

    name: Literal["qmc"]
    sequence: Literal["sobol", "halton"] = "sobol"  # which one
    scramble: bool = True  # randomizes the sequence by the seed, and keeps it even
    cannot = frozenset({"conditions"})

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        return QMCSampler(
            qmc_type=self.sequence,
            scramble=self.scramble,
            seed=self.seed,
            independent_sampler=RandomSampler(seed=trial_seed),
            warn_independent_sampling=False,
        )


class Genetic(SamplerSection):
    """Trials are generations of a population, whose parents are in the ledger; seeded by trial.

    The first generation is random: plan trials for several. Optuna would often train a child that
    is a copy of an earlier trial; here it is bred again.
    """

    population: Population = 20  # trials in a generation
    crossover: Fraction = 0.9  # of mixing two parents rather than taking one
    mutation: Fraction | None = None  # of each dimension; null: 1 / dimensions
    cannot = frozenset({"conditions"})
    kind: ClassVar[type[NSGA2WithoutCopies | NSGA3WithoutCopies]]

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        return self.kind(
            seed=trial_seed,
            population_size=self.population,
            crossover_prob=self.crossover,
            mutation_prob=self.mutation,
        )


class NSGA2(Genetic):
    """NSGA-II (Deb et al. 2002)."""

    name: Literal["nsga2"]
    kind = NSGA2WithoutCopies


class NSGA3(Genetic):
    """NSGA-III (Deb and Jain 2014), for more than three objectives."""

    name: Literal["nsga3"]
    kind = NSGA3WithoutCopies


class Grid(SamplerSection):
    """Every combination of the dimensions' values, in an order shuffled by the seed alone."""

    name: Literal["grid"]
    cannot = frozenset({"conditions", "endless dimensions"})
    finite = True

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        values = {path: dimension_values(dimension) for path, dimension in space.items()}
        return GridOnce(values, self.seed, RandomSampler(seed=trial_seed))


class BruteForce(SamplerSection):
    """Every point of the space, conditions respected, in an order drawn by trial."""

    name: Literal["brute_force"]
    cannot = frozenset({"endless dimensions"})
    finite = True

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        return BruteForceOnce(seed=trial_seed)


SamplerConfig = Annotated[
    Random | TPE | GP | BoTorch | Ax | CmaEs | QMC | NSGA2 | NSGA3 | Grid | BruteForce,
    Field(discriminator="name"),
]


def make_sampler(config: SamplerConfig, space: Space) -> BaseSampler:
    """Return the sampler of a study that searches `space`."""
    return RebuiltSampler(lambda trial_seed: config.make(trial_seed, space), config.seed)


def check_sampler(
    config: SamplerConfig, space: Space, objectives: int, constrained: bool, source: str
) -> None:
    """Raise ConfigError unless the sampler can search this `space` for these goals."""
    what = f"{source}: sampler.name: {config.name}"
    if objectives > 1 and "objectives" in config.cannot:
        raise ConfigError(
            f"{what} needs one objective, and there are {objectives}; use tpe, nsga2 or gp"
        )
    if constrained and "constraints" in config.cannot:
        raise ConfigError(f"{what} ignores constraints; use tpe, gp or nsga2")
    for path, dimension in space.items():
        if dimension.when and "conditions" in config.cannot:
            raise ConfigError(
                f"{what} cannot search space.{path} under a condition; use tpe, brute_force or "
                "random"
            )
        if isinstance(dimension, CategoricalDimension) and "categoricals" in config.cannot:
            raise ConfigError(
                f"{what} would draw the categorical space.{path} at random; use tpe or gp"
            )
        if not dimension_size(dimension) and "endless dimensions" in config.cannot:
            raise ConfigError(
                f"{what} cannot enumerate the floats of space.{path}; give it a step, or list its "
                "values in a categorical"
            )
    # The grid lists its points, and brute_force the values of a dimension, for every trial.
    sizes = [dimension_size(dimension) for dimension in space.values()]
    listed = math.prod(sizes) if isinstance(config, Grid) else max(sizes)
    if config.finite and listed > MOST_LISTED:
        raise ConfigError(
            f"{what} would list {listed:,} {'points' if isinstance(config, Grid) else 'values'} "
            f"for every trial, and {MOST_LISTED:,} are the most; use larger steps, or qmc"
        )


def dimension_size(dimension: Dimension) -> int:
    """Return how many values a dimension has; 0 for floats without a step, which have no end."""
    if isinstance(dimension, CategoricalDimension):
        return len(dimension.choices)
    if dimension.step is None:
        return 0
    low, high, step = (Decimal(str(x)) for x in (dimension.low, dimension.high, dimension.step))
    return int((high - low) / step) + 1


def dimension_values(dimension: Dimension) -> list[Any]:
    """Return every value of a dimension, in order; none for floats without a step."""
    if isinstance(dimension, CategoricalDimension):
        return dimension.probes()
    low, step = Decimal(str(dimension.low)), Decimal(str(dimension.step or 0))
    number = float if isinstance(dimension, FloatDimension) else int
    return [number(low + position * step) for position in range(dimension_size(dimension))]
