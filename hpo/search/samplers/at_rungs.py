"""What a sampler learns from trials that were stopped or parked early: curves cut at one rung.

Samplers look at final values, which most trials of a halving study never have: Optuna's GP ignores
pruned trials, and all ignore parked ones or take them for bad. As in BOHB (Falkner et al. 2018,
arXiv 1807.01774) a sampler is shown the values of the highest rung that enough trials have
reached, all of the same number of steps. Nothing is written: the ledger keeps what happened.
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
from hpo.search.samplers.rebuilt import Delegate
from hpo.search.space import Space
from storage import Reason

ENOUGH = 10  # trials at a rung; what samplers want to have seen before they model


def rungs_of(pruner: PrunerConfig) -> Halving | None:
    """The rungs at which samplers compare trials: of a pruner by the objective, at equal steps."""
    # Not `hyperband`, whose brackets have rungs of their own.
    if not isinstance(pruner, Asha) or type(pruner) not in (Asha, ParkedHalving):
        return None
    if pruner.metric is not None or pruner.unit != "steps":
        return None
    return Halving(pruner.minimum, pruner.reduction_factor)


def make_shown_rungs(config: SamplerConfig, space: Space, pruner: PrunerConfig) -> BaseSampler:
    """Return a study's sampler; where its pruner has rungs, it is shown the study as RungView."""
    return at_rungs(make_sampler(config, space), rungs_of(pruner))


def at_rungs(sampler: BaseSampler, halving: Halving | None) -> BaseSampler:
    """`sampler`, shown a study as RungView does, if there are rungs."""
    return sampler if halving is None else _AtRungs(sampler, halving)


class RungView(Study):
    """A study on one objective as if its trials ended at one rung. Only to be read."""

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
        # At each rung, and at the end.
        at_rungs = self._halving.rung_values(trial.intermediate_values)
        return [*at_rungs, *(trial.values if trial.state is TrialState.COMPLETE else ())]

    def _shown(self, trial: FrozenTrial, value: float | None, width: int) -> FrozenTrial:
        pending = not trial.state.is_finished() and trial.last_step is None
        # Whatever it had reached, one that diverged or ran out of memory is no good.
        ended_badly = trial.user_attrs.get("reason", Reason.PRUNED) != Reason.PRUNED
        if pending or ended_badly or trial.state is TrialState.FAIL:
            return trial
        shown = copy.copy(trial)
        shown.state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        shown.values = None if value is None else [value]
        if trial.state is not TrialState.COMPLETE:
            # It took less than a whole training does.
            shown.user_attrs = {**trial.user_attrs}
            shown.user_attrs.pop("device_seconds", None)
            # Constraints are written at a trial's end; samplers want them of all complete ones.
            if width:
                shown.system_attrs = {"constraints": [0.0] * width, **trial.system_attrs}
        return shown


class _AtRungs(Delegate):
    """Another sampler, shown the view of each study."""

    def __init__(self, sampler: BaseSampler, halving: Halving) -> None:
        self._other = sampler
        self._halving = halving

    def _sampler(self, trial: FrozenTrial) -> BaseSampler:
        return self._other

    def _shown(self, study: Study) -> Study:
        if len(study.directions) > 1:
            return study  # whose trials have no curves in Optuna's tables
        return RungView(study, self._halving)
