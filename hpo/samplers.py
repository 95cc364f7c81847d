"""Samplers by name, rebuilt from the ledger for every trial.

A sampler keeps nothing between trials: its random numbers come from (seed, trial number), or from
the seed alone where it needs one sequence for all trials, and all else from the ledger. A resumed
study so proposes what the uninterrupted one would have. What a sampler cannot do is refused when
the study is loaded.

None is given a `constraints_func`: those that know constraints (tpe, gp, nsga2, nsga3, botorch)
read a trial's system attribute "constraints", which its end has written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import Field

from hpo.cost_aware import CostAwareTPESampler
from hpo.space import CategoricalDimension, Dimension, FloatDimension
from trainer.settings import ConfigError, Section

Space = Mapping[str, Dimension]
Trials = Annotated[int, Field(ge=1)]
Population = Annotated[int, Field(ge=2)]
BREEDINGS = 20  # before a copy is taken: a small space may have no other point
Probability = Annotated[float, Field(ge=0, le=1)]


class SamplerSection(Section):
    """What every sampler has: the seed of its random numbers."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    # Of several objectives, constraints, conditions (`when`), categorical dimensions and endless
    # ones (floats without a step), what the sampler ignores or cannot take.
    cannot: ClassVar[frozenset[str]] = frozenset()
    finite: ClassVar[bool] = False  # proposes every point of the space once, and then no other

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        """Optuna's sampler for the trial that `trial_seed`, from (seed, trial number), is for."""
        raise NotImplementedError


class Random(SamplerSection):
    """Independent draws, seeded by trial."""

    name: Literal["random"]

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        """Optuna's sampler."""
        return RandomSampler(seed=trial_seed)


class TPE(SamplerSection):
    """Tree-structured Parzen estimators (Bergstra et al. 2011), seeded by trial.

    Running trials count as bad ones, so that those asked side by side differ.
    """

    name: Literal["tpe"] = "tpe"
    startup_trials: Trials = 10  # finished trials before it models
    multivariate: bool = True  # models the dimensions jointly, conditional ones by group
    candidates: Annotated[int, Field(ge=1)] = 24  # drawn and compared for each proposal
    cost_aware: bool = False  # prefers improvement per device-second

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        """Optuna's sampler."""
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
    """A Gaussian process and expected improvement, of hypervolume too; seeded by trial."""

    name: Literal["gp"]
    startup_trials: Trials = 10
    cannot = frozenset({"conditions"})

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        """Optuna's sampler."""
        return GPSampler(
            seed=trial_seed, n_startup_trials=self.startup_trials, warn_independent_sampling=False
        )


class BoTorch(SamplerSection):
    """BoTorch's Gaussian process, pending trials respected; seeded by trial."""

    name: Literal["botorch"]
    startup_trials: Trials = 10
    cannot = frozenset({"conditions"})

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        """Optuna-integration's sampler."""
        # Imports torch, which the command line does without.
        from optuna_integration import BoTorchSampler

        sampler: BaseSampler = BoTorchSampler(
            seed=trial_seed, n_startup_trials=self.startup_trials, consider_running_trials=True
        )
        return sampler


class CmaEs(SamplerSection):
    """CMA-ES (Hansen 2016), its state in the ledger.

    Seeded by the seed alone: Optuna adds the trial's number itself. The first trial is drawn.
    """

    name: Literal["cmaes"]
    population: Population | None = None  # trials in a generation; null: 4 + 3 ln(dimensions)
    margin: bool = False  # keeps stepped dimensions from getting stuck (Hamano et al. 2022)
    cannot = frozenset({"objectives", "constraints", "conditions", "categoricals"})

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        """Optuna's sampler."""
        return CmaEsSampler(
            seed=self.seed,
            independent_sampler=RandomSampler(seed=trial_seed),
            popsize=self.population,
            with_margin=self.margin,
            warn_independent_sampling=False,
        )


class QMC(SamplerSection):
    """A low-discrepancy sequence; the next place in it is kept in the ledger.

    Scrambled by the seed alone, or each trial would be of another sequence. The first is drawn.
    """

    name: Literal["qmc"]
    sequence: Literal["sobol", "halton"] = "sobol"
    scramble: bool = True
    cannot = frozenset({"conditions"})

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        """Optuna's sampler."""
        return QMCSampler(
            qmc_type=self.sequence,
            scramble=self.scramble,
            seed=self.seed,
            independent_sampler=RandomSampler(seed=trial_seed),
            warn_independent_sampling=False,
        )


class Genetic(SamplerSection):
    """Trials are generations of a population, its parents kept in the ledger; seeded by trial.

    The first generation is drawn: plan trials for several. A child that is a copy of an earlier
    trial, as Optuna would often train, is bred again.
    """

    population: Population = 20  # trials in a generation
    crossover: Probability = 0.9  # of mixing two parents rather than taking one
    mutation: Probability | None = None  # of each dimension; null: 1 / dimensions
    cannot = frozenset({"conditions"})

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "population_size": self.population,
            "crossover_prob": self.crossover,
            "mutation_prob": self.mutation,
        }


class NSGA2(Genetic):
    """NSGA-II (Deb et al. 2002)."""

    name: Literal["nsga2"]

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        """Optuna's sampler."""
        return _NSGA2(seed=trial_seed, **self._options)


class NSGA3(Genetic):
    """NSGA-III (Deb and Jain 2014), for more than three objectives."""

    name: Literal["nsga3"]

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        """Optuna's sampler."""
        return _NSGA3(seed=trial_seed, **self._options)


class Grid(SamplerSection):
    """Every combination of the dimensions' values, in an order shuffled by the seed alone."""

    name: Literal["grid"]
    cannot = frozenset({"conditions", "endless dimensions"})
    finite = True

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        """Optuna's sampler."""
        values = {path: dimension_values(dimension) for path, dimension in space.items()}
        return _Grid(values, self.seed, RandomSampler(seed=trial_seed))


class BruteForce(SamplerSection):
    """Every point of the space, conditions respected, in an order drawn by trial."""

    name: Literal["brute_force"]
    cannot = frozenset({"endless dimensions"})
    finite = True

    def make(self, trial_seed: int, space: Space) -> BaseSampler:
        """Optuna's sampler."""
        return _BruteForce(seed=trial_seed)


SamplerConfig = Annotated[
    Random | TPE | GP | BoTorch | CmaEs | QMC | NSGA2 | NSGA3 | Grid | BruteForce,
    Field(discriminator="name"),
]


def make_sampler(config: SamplerConfig, space: Space) -> BaseSampler:
    """The sampler of a study that searches `space`."""
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
        if not dimension_values(dimension) and "endless dimensions" in config.cannot:
            raise ConfigError(
                f"{what} cannot enumerate the floats of space.{path}; give it a step, or list its "
                "values in a categorical"
            )


def dimension_values(dimension: Dimension) -> list[Any]:
    """Every value of a dimension, in order; none for floats without a step."""
    if isinstance(dimension, CategoricalDimension):
        return dimension.probes()
    if not isinstance(dimension, FloatDimension):
        return list(range(dimension.low, dimension.high + 1, dimension.step))
    if dimension.step is None:
        return []
    low, high, step = (Decimal(str(x)) for x in (dimension.low, dimension.high, dimension.step))
    return [float(low + position * step) for position in range(int((high - low) / step) + 1)]


class SpaceExhausted(Exception):
    """Every point of the space was proposed before."""


def check_new(study: Study, trial: Trial) -> None:
    """Raise SpaceExhausted if what a finite sampler proposes for `trial` was proposed before."""
    *earlier, asked = study.get_trials(deepcopy=False)[: trial.number + 1]
    enqueued = "fixed_params" in asked.system_attrs
    # The grid does not know of enqueued points, and comes to theirs again.
    of_grid = "grid_id" in asked.system_attrs
    proposed = [other for other in earlier if ("grid_id" in other.system_attrs) == of_grid]
    if not enqueued and any(other.params == asked.params for other in proposed):
        raise SpaceExhausted


class RebuiltSampler(BaseSampler):
    """Another sampler, built anew for each trial with a seed from (seed, trial number)."""

    def __init__(self, build: Callable[[int], BaseSampler], seed: int) -> None:
        self._build = build
        self._seed = seed
        self._current: tuple[int, BaseSampler] | None = None

    def _for(self, trial: FrozenTrial) -> BaseSampler:
        if self._current is None or self._current[0] != trial.number:
            with warnings.catch_warnings():
                # "Experimental", said again for every trial.
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._current = trial.number, self._build(trial_seed(self._seed, trial.number))
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


def trial_seed(seed: int, number: int) -> int:
    """The seed of a trial's own random numbers."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


class _NeverStops:
    # Optuna's exhaustive samplers end `Study.optimize`, and raise outside of it. Here the
    # controller sees that a point comes again.
    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        pass


class _Grid(_NeverStops, GridSampler):
    def __init__(self, values: Mapping[str, list[Any]], seed: int, other: BaseSampler) -> None:
        super().__init__(values, seed)
        self._other = other

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        # An enqueued trial is no point of the grid; what it leaves out is drawn.
        source = super().sample_independent
        if "grid_id" not in trial.system_attrs:
            source = self._other.sample_independent
        return source(study, trial, param_name, param_distribution)


class _BruteForce(_NeverStops, BruteForceSampler):
    pass


class _NoCopies:
    # Left of an Optuna genetic sampler, whose own random numbers go on from one child to the next.
    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        earlier = [other.params for other in study.get_trials(deepcopy=False)[: trial.number]]
        child: dict[str, Any] = {}
        for _ in range(BREEDINGS):
            child = super().sample_relative(study, trial, search_space)  # type: ignore[misc]
            if child not in earlier:
                break
        return child


class _NSGA2(_NoCopies, NSGAIISampler):
    pass


class _NSGA3(_NoCopies, NSGAIIISampler):
    pass
