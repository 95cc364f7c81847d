"""Pruners by name. Optuna's keep what they need in the ledger, so they survive a restart.

`make` builds Optuna's pruner for trials of at most `max_resource` steps or tokens. What a pruner
compares, and at which resource, is decided in hpo/control/pruning.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from pydantic import Field, FiniteFloat, model_validator

from hpo.search.objectives import Direction
from trainer.config.settings import Section

Steps = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=1)]
Trials = Annotated[int, Field(ge=0)]
Factor = Annotated[int, Field(ge=2)]


class Comparison(Section):
    """What a pruner looks at: a metric, at equal optimizer steps or at equal tokens."""

    metric: str | None = None  # null: the study's one objective
    direction: Direction | None = None  # null: as in objectives, or minimize if it is not there
    unit: Literal["steps", "tokens"] = "steps"  # tokens: step x batch_size x context of a trial
    min_steps: Steps | None = None  # no trial is pruned before this optimizer step
    min_tokens: Tokens | None = None  # the same for `unit: tokens`

    @model_validator(mode="after")
    def _minimum_in_its_unit(self) -> Comparison:
        if self.unit == "tokens" and (self.min_tokens is None or self.min_steps is not None):
            raise ValueError("unit: tokens needs min_tokens, and takes no min_steps")
        if self.unit == "steps" and self.min_tokens is not None:
            raise ValueError("min_tokens: needs unit: tokens; or give min_steps")
        if self.direction and not self.metric:
            raise ValueError("direction: belongs to a metric, and pruner.metric is not given")
        return self

    @property
    def minimum(self) -> int:
        """The first resource, in `unit`, at which a trial may be pruned."""
        return self.min_tokens or self.min_steps or 1


class NoPruner(Section):
    """Every trial runs to its last step."""

    name: Literal["none"]

    def make(self, max_resource: int) -> BasePruner:
        return NopPruner()


class Percentile(Comparison):
    """Stops a trial whose best value is not within the best `percentile` percent at that point."""

    name: Literal["percentile"]
    percentile: Annotated[float, Field(gt=0, lt=100)] = 25.0  # percent of the trials that go on
    startup_trials: Trials = 5  # trials finished before it prunes

    def make(self, max_resource: int) -> BasePruner:
        return PercentilePruner(
            self.percentile, n_startup_trials=self.startup_trials, n_warmup_steps=self.minimum - 1
        )


class Median(Comparison):
    """Stops a trial whose best value is worse than the median of the others at that point."""

    name: Literal["median"]
    startup_trials: Trials = 5  # trials finished before it prunes

    def make(self, max_resource: int) -> BasePruner:
        return MedianPruner(n_startup_trials=self.startup_trials, n_warmup_steps=self.minimum - 1)


class Threshold(Comparison):
    """Stops a trial whose last value is past a limit, or NaN."""

    name: Literal["threshold"]
    lower: FiniteFloat | None = None  # smallest value that goes on; null: any
    upper: FiniteFloat | None = None  # largest value that goes on; null: any

    @model_validator(mode="after")
    def _some_limit(self) -> Threshold:
        if self.lower is None and self.upper is None:
            raise ValueError("needs lower, upper or both")
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise ValueError(f"lower {self.lower:g} is not below upper {self.upper:g}")
        return self

    def make(self, max_resource: int) -> BasePruner:
        return ThresholdPruner(self.lower, self.upper, n_warmup_steps=self.minimum - 1)


class Wilcoxon(Comparison):
    """Stops a trial that a signed-rank test of evaluations finds worse than the best one.

    It looks at the whole of both curves: a slow starter is stopped even if it has caught up.
    """

    name: Literal["wilcoxon"]
    p_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.1  # p value below which it stops a trial
    startup_evaluations: Annotated[int, Field(ge=0)] = 2  # pairs before it prunes

    def make(self, max_resource: int) -> BasePruner:
        return WilcoxonPruner(
            p_threshold=self.p_threshold, n_startup_steps=self.startup_evaluations
        )


class Asha(Comparison):
    """Asynchronous successive halving (Li et al. 2018, arXiv 1810.05934).

    Rungs at `min_steps` (100 if not given) times powers of `reduction_factor`; of the trials that
    reached a rung, the best 1/`reduction_factor` go on.
    """

    name: Literal["asha"]
    reduction_factor: Factor = 3  # one trial of so many goes on from a rung

    @property
    def minimum(self) -> int:
        """The first rung."""
        return self.min_tokens or self.min_steps or 100

    def make(self, max_resource: int) -> BasePruner:
        return SuccessiveHalvingPruner(
            min_resource=self.minimum, reduction_factor=self.reduction_factor
        )


class Hyperband(Asha):
    """Several `asha` side by side, each with another first rung (Li et al. 2018, JMLR 18).

    The study's name and a trial's number decide which of these brackets the trial belongs to; tpe
    learns only from trials of the same bracket.
    """

    name: Literal["hyperband"]  # type: ignore[assignment]

    def make(self, max_resource: int) -> BasePruner:
        pruner = HyperbandPruner(
            min_resource=self.minimum,
            max_resource=max(max_resource, self.minimum),
            reduction_factor=self.reduction_factor,
        )
        # Optuna builds its brackets when it first prunes, and takes all trials for one bracket
        # until then: a resumed study would make other proposals.
        pruner._try_initialization(None)  # type: ignore[arg-type]
        return pruner


class ParkedHalving(Asha):
    """As `asha`, but a trial that is not among the best is parked, and may go on later.

    What it has trained is never trained again.
    """

    name: Literal["parked_halving"]  # type: ignore[assignment]

    def make(self, max_resource: int) -> BasePruner:
        return NopPruner()  # hpo/search/halving.py decides instead


class Patient(Section):
    """Lets another pruner stop a trial only after the trial has stopped improving."""

    name: Literal["patient"]
    patience: Annotated[int, Field(ge=0)] = 2  # evaluations without improvement that are allowed
    min_delta: Annotated[float, Field(ge=0)] = 0.0  # what counts as an improvement
    pruner: Annotated[  # the other, with options of its own
        Percentile | Median | Threshold | Wilcoxon | Asha | Hyperband, Field(discriminator="name")
    ]

    def make(self, max_resource: int) -> BasePruner:
        return PatientPruner(self.pruner.make(max_resource), self.patience, self.min_delta)


PrunerConfig = Annotated[
    NoPruner
    | Median
    | Percentile
    | Threshold
    | Wilcoxon
    | Asha
    | Hyperband
    | ParkedHalving
    | Patient,
    Field(discriminator="name"),
]


def comparison(pruner: PrunerConfig) -> Comparison | None:
    """Return what the pruner compares, or None if there is no pruner."""
    if isinstance(pruner, Patient):
        return pruner.pruner
    return pruner if isinstance(pruner, Comparison) else None
