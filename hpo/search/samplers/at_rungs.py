"""What a sampler learns from trials that were stopped or parked early: their values at one rung.

Samplers look at final values, which most trials of a halving study never have. Optuna's GP ignores
pruned trials, and every sampler ignores parked ones or takes them for bad. As in BOHB (Falkner et
al. 2018, arXiv 1807.01774) a sampler is shown the values at the highest rung that enough trials
have reached, all after the same number of steps. The ledger itself stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Container

from optuna import Study
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from hpo.search.halving import Halving
from hpo.search.pruners import Asha, ParkedHalving, PrunerConfig
from hpo.search.samplers.config import SamplerConfig, make_sampler
from hpo.search.samplers.distinct import Distinct
from hpo.search.samplers.rebuilt import Delegate
from hpo.search.space import Space
from storage import Reason

ENOUGH = 10  # trials at a rung: samplers want to have seen so many before they model


def rungs_of(pruner: PrunerConfig) -> Halving | None:
    """Return the rungs of a pruner that compares the objective at equal steps, else None."""
    # `hyperband` has none in common: each of its brackets has rungs of its own.
    if not isinstance(pruner, Asha) or type(pruner) not in (Asha, ParkedHalving):
        return None
    if pruner.metric is not None or pruner.unit != "steps":
        return None
    return Halving(pruner.minimum, pruner.reduction_factor)


def make_shown_rungs(config: SamplerConfig, space: Space, pruner: PrunerConfig) -> BaseSampler:
    """Return a study's sampler; where its pruner has rungs, it is shown the study as RungView."""
    sampler = at_rungs(make_sampler(config, space), rungs_of(pruner))
    return sampler if config.finite else Distinct(sampler, space)


def at_rungs(sampler: BaseSampler, halving: Halving | None) -> BaseSampler:
    """Return `sampler`, which is shown a RungView of each study if there are rungs."""
    return sampler if halving is None else _AtRungs(sampler, halving)


class RungView(Study):
    """A study with one objective, as if its trials ended at one rung. It can only be read."""

    def __init__(self, study: Study, halving: Halving, enough: int = ENOUGH) -> None:
        self.__dict__.update(vars(study))
        self._halving = halving
        self._enough = enough

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = super()._get_trials(deepcopy, use_cache=use_cache)
        values = [self._values(trial) for trial in trials]
        reached = sorted(map(len, values), reverse=True)
        rung = reached[self._enough - 1] if len(reached) >= self._enough else 0
        width = max((len(trial.constraints) for trial in trials), default=0)
        shown = [
            self._shown(trial, at[rung - 1] if len(at) >= rung > 0 else None, width)
            for trial, at in zip(trials, values, strict=True)
        ]
        return [trial for trial in shown if states is None or trial.state in states]

    def _values(self, trial: FrozenTrial) -> list[float]:
        # The trial's value at each rung, and its final one.
        at_rungs = self._halving.rung_values(trial.intermediate_values)
        return [*at_rungs, *(trial.values if trial.state is TrialState.COMPLETE else ())]

    def _shown(self, trial: FrozenTrial, value: float | None, width: int) -> FrozenTrial:
        pending = not trial.state.is_finished() and trial.last_step is None
        # A trial that diverged or ran out of memory is bad, whatever rung it had reached.
        ended_badly = trial.user_attrs.get("reason", Reason.PRUNED) != Reason.PRUNED
        if pending or ended_badly or trial.state is TrialState.FAIL:
            return trial
        shown = copy.copy(trial)
        shown.state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        shown.values = None if value is None else [value]
        if trial.state is not TrialState.COMPLETE:
            # These seconds are less than what a whole training takes.
            shown.user_attrs = {**trial.user_attrs}
            shown.user_attrs.pop("device_seconds", None)
            # Constraints are written at a trial's end, but samplers want all complete trials'.
            if width:
                shown.system_attrs = {"constraints": [0.0] * width, **trial.system_attrs}
        return shown


class _AtRungs(Delegate):
    """A sampler that lets another one propose, which is shown a RungView of each study."""

    def __init__(self, sampler: BaseSampler, halving: Halving) -> None:
        self._other = sampler
        self._halving = halving

    def _sampler(self, trial: FrozenTrial) -> BaseSampler:
        return self._other

    def _shown(self, study: Study) -> Study:
        if len(study.directions) > 1:
            return study  # then Optuna's tables have no curves
        return RungView(study, self._halving)
