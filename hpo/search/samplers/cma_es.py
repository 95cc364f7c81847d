"""Optuna's CMA-ES, whose state is made again from the ledger's trials for every proposal.

Optuna's own sampler keeps the optimizer in the ledger as a pickle, and so runs whatever code
somebody has written there. Here the first trial that is asked after a generation is full keeps the
numbers of the generation's trials and their values then, which no later change of them touches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.samplers import CmaEsSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.search.ranking import sign

# System attributes of a trial; Optuna's own sampler has the first one too.
GENERATION = "cma:generation"
ROUNDED = "x_for_tell"  # only with a margin: the point that the proposal was rounded to
TOLD = "cma:told"  # by generation: the numbers of its trials, each with its value

Solutions = Sequence[tuple[int, float]]


class CmaEsFromTrials(CmaEsSampler):
    """Optuna's sampler, to be built anew for each trial. It keeps no pickle and reads none.

    It proposes what Optuna's own would if that were built anew for every trial with one seed.
    """

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a point of the first generation that is not full; {} if no trial is complete."""
        trials = study.get_trials(deepcopy=False)
        if not search_space or all(t.state is not TrialState.COMPLETE for t in trials):
            return {}
        transform = _SearchSpaceTransform(
            search_space, transform_step=not self._with_margin, transform_0_1=True
        )
        # Optuna's own draws the seed first if it finds an optimizer; making a new one draws before.
        found = any(TOLD in t.system_attrs for t in trials if t.state is TrialState.COMPLETE)
        seed = self._draw_seed() if found else None
        optimizer: Any = self._init_optimizer(transform, study.direction)
        attributes: dict[str, Any] = {}
        if told := self._replay(optimizer, trials, transform, study.direction):
            attributes[TOLD] = told
        attributes[GENERATION] = optimizer.generation
        optimizer.reseed_rng((seed or self._draw_seed()) + trial.number)
        point = optimizer.ask()
        if self._with_margin:
            point, rounded = point
            attributes[ROUNDED] = rounded.tolist()
        for key, value in attributes.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
        return transform.untransform(point)

    def _draw_seed(self) -> int:
        return int(self._cma_rng.rng.randint(1, 2**16))

    def _replay(
        self,
        optimizer: Any,
        trials: Sequence[FrozenTrial],
        transform: _SearchSpaceTransform,
        direction: StudyDirection,
    ) -> dict[str, Solutions]:
        """Tell `optimizer` every full generation in order, and return those not kept by a trial."""
        kept: dict[str, Solutions] = {}
        for trial in reversed(trials):  # the first that kept a generation counts
            kept.update(trial.system_attrs.get(TOLD, {}))
        new: dict[str, Solutions] = {}
        while True:
            generation = str(optimizer.generation)
            solutions = kept.get(generation) or _complete(trials, optimizer)
            if len(solutions) < optimizer.population_size:
                return new
            if generation not in kept:
                new[generation] = solutions
            optimizer.tell(
                [(self._point(trials[n], transform), sign(direction) * y) for n, y in solutions]
            )
            if generation in kept:  # Optuna reads it back from a pickle, which rounds like a copy
                vars(optimizer).update(vars(copy.deepcopy(optimizer)))

    def _point(self, trial: FrozenTrial, transform: _SearchSpaceTransform) -> Any:
        return (
            trial.system_attrs[ROUNDED] if self._with_margin else transform.transform(trial.params)
        )


def _complete(trials: Sequence[FrozenTrial], optimizer: Any) -> Solutions:
    """Return the first complete trials of the optimizer's generation, as many as it takes."""
    found = [
        (trial.number, trial.values[0])
        for trial in trials
        if trial.state is TrialState.COMPLETE
        and trial.system_attrs.get(GENERATION) == optimizer.generation
    ]
    return found[: optimizer.population_size]
