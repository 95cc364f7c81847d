"""Pruners by name. Optuna's keep what they need in the ledger, so they survive a restart."""

from __future__ import annotations

from typing import Annotated, Literal

from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from pydantic import Field

from trainer.settings import Section

Steps = Annotated[int, Field(ge=1)]


class NoPruner(Section):
    """Every trial runs to its last step."""

    name: Literal["none"]

    def make(self) -> BasePruner:
        """Optuna's pruner."""
        return NopPruner()


class Median(Section):
    """Stops a trial whose best value is worse than the median of the others at that step."""

    name: Literal["median"]
    startup_trials: Annotated[int, Field(ge=0)] = 5  # trials finished before it prunes
    min_steps: Steps = 1  # no trial is pruned before this optimizer step

    def make(self) -> BasePruner:
        """Optuna's pruner."""
        return MedianPruner(n_startup_trials=self.startup_trials, n_warmup_steps=self.min_steps - 1)


class Asha(Section):
    """Asynchronous successive halving (Li et al. 2018, arXiv 1810.05934).

    Rungs at `min_steps` times powers of `reduction_factor`; of the trials that reached a rung, the
    best 1/`reduction_factor` go on.
    """

    name: Literal["asha"]
    min_steps: Steps = 100
    reduction_factor: Annotated[int, Field(ge=2)] = 3

    def make(self) -> BasePruner:
        """Optuna's pruner."""
        return SuccessiveHalvingPruner(
            min_resource=self.min_steps, reduction_factor=self.reduction_factor
        )


class ParkedHalving(Section):
    """As `asha`, but a trial that is not among the best is parked, and may go on later.

    What it trained is never trained again; hpo/halving.py decides.
    """

    name: Literal["parked_halving"]
    min_steps: Steps = 100
    reduction_factor: Annotated[int, Field(ge=2)] = 3

    def make(self) -> BasePruner:
        """None of Optuna's stops a trial."""
        return NopPruner()


PrunerConfig = Annotated[NoPruner | Median | Asha | ParkedHalving, Field(discriminator="name")]
