"""What a study's pruner compares: which metric, at equal optimizer steps or at equal tokens.

Optuna prunes by its own intermediate values, which are those of the objective, by step. Here its
pruners see a view of the study instead, made of the metrics in the ledger: one metric with one
direction, and for every trial its last value at the resources of the trial that is judged. So
trials are compared after equal resources, even if they were not evaluated at the same steps.
Optuna's own values stay as they are, for the dashboard and for tpe.
"""

from __future__ import annotations

import copy
from bisect import bisect_right, insort
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.control.leased import LeasedStudy
from hpo.search.pruners import ParkedHalving, comparison
from hpo.search.ranking import sign
from hpo.search.space import values_of
from storage import Ledger
from trainer.config.settings import get_path

if TYPE_CHECKING:
    from hpo.study.config import StudyConfig

Curve = dict[int, float]  # value by resource, in order


def make_pruner(config: StudyConfig) -> optuna.pruners.BasePruner:
    """Make the study's pruner, for trials as long as the longest of the study."""
    compared = comparison(config.pruner)
    longest = int(max(values_of(config.space, config.train, "steps")))
    if compared is not None and compared.unit == "tokens":
        for path in ("data.batch_size", "data.context"):
            longest *= int(max(values_of(config.space, config.train, path)))
    return config.pruner.make(longest)


class Pruning:
    """Asks a study's pruner whether its running trials go on."""

    def __init__(self, leased: LeasedStudy) -> None:
        ledger, study, config = leased.ledger, leased.study, leased.config
        self._ledger, self._study, self._config = ledger, study, config
        self._study_id = leased.record.study_id
        self._compared = comparison(config.pruner)
        # Parked halving compares the same curves, and stops no trial.
        self._prunes = self._compared is not None and not isinstance(config.pruner, ParkedHalving)
        self._metric, direction = config.compared_by_pruner
        self._direction = StudyDirection[direction.upper()]
        # Whether Optuna's intermediate values are what is compared.
        self._told = [objective.metric for objective in config.objectives] == [self._metric]
        self._finished: dict[int, Curve] | None = None  # of finished trials, by id, where not
        self._small: dict[int, Curve] = {}  # of finished trials, by number, as halving wants them
        self._units: dict[int, int] = {}  # what a step counts, by the trial's id
        peers = _Peers(_CompleteTrials(ledger, self._study_id), self._by_resource)
        self._view = _View(ledger.storage, self._direction, peers)
        self._viewed = optuna.Study(study.study_name, self._view, pruner=study.pruner)  # type: ignore[arg-type]

    def should_prune(self, trial: optuna.Trial) -> bool:
        """Whether `trial` should stop where it is."""
        if not self._prunes:
            return False
        assert self._compared is not None
        judged = copy.copy(self._ledger.storage.get_trial(trial._trial_id))
        judged.intermediate_values = self._by_resource(judged)
        if max(judged.intermediate_values, default=0) < self._compared.minimum:
            return False
        self._view.judged = judged
        return self._viewed.pruner.prune(self._viewed, judged)

    def curves(self) -> dict[int, Curve]:
        """Return, by trial number, the metric's values by resource. A small value is good."""
        read = self._ledger.curves
        running = {} if self._told else read(self._study_id, self._metric, finished=False)
        found: dict[int, Curve] = {}
        for trial in self._study.get_trials(deepcopy=False):
            small = self._small.get(trial.number)
            if small is None:
                curve = self._by_resource(trial, running)
                small = {at: sign(self._direction) * value for at, value in curve.items()}
                if trial.state.is_finished():
                    self._small[trial.number] = small
            found[trial.number] = small
        return found

    def _by_resource(self, trial: FrozenTrial, running: Mapping[int, Curve] | None = None) -> Curve:
        curve = trial.intermediate_values if self._told else self._curve(trial, running)
        unit, steps = self._unit(trial), sorted(curve)
        if unit == 1 and steps == list(curve):
            return curve
        return {step * unit: curve[step] for step in steps}

    def _curve(self, trial: FrozenTrial, running: Mapping[int, Curve] | None) -> Curve:
        """Read the metric by optimizer step; `running` has the curves of unfinished trials."""
        ended = trial.state.is_finished()
        if running is not None and not ended:
            return running.get(trial._trial_id, {})
        if self._finished is None:
            self._finished = self._ledger.curves(self._study_id, self._metric, finished=True)
        if trial._trial_id in self._finished:
            return self._finished[trial._trial_id]
        metrics = self._ledger.metrics(trial._trial_id)
        curve = {step: each[self._metric] for step, each in metrics.items() if self._metric in each}
        if ended:
            self._finished[trial._trial_id] = curve
        return curve

    def _unit(self, trial: FrozenTrial) -> int:
        """Return how much resource one optimizer step of `trial` uses."""
        if self._compared is None or self._compared.unit == "steps":
            return 1
        if trial._trial_id not in self._units:
            document = self._config.trial_document(trial.params, "")
            tokens = get_path(document, "data.batch_size") * get_path(document, "data.context")
            self._units[trial._trial_id] = int(tokens)
        return self._units[trial._trial_id]


class _CompleteTrials:
    """A study's complete trials, with which a pruner compares a trial. Each is read once.

    Optuna's storage goes through all trials of the study whenever it is asked for some of them, and
    reads the running ones again. Here an evaluation costs one query for what has ended since the
    last query, whoever ended it.
    """

    def __init__(self, ledger: Ledger, study_id: int) -> None:
        self._ledger = ledger
        self._study_id = study_id
        self._unfinished: set[int] = set()
        self._newest = 0  # trial looked at

    def new(self) -> list[FrozenTrial]:
        """Return the trials that have become complete since the last call."""
        storage = self._ledger.storage
        if not self._newest:  # one after the other would take minutes in a big study
            storage.get_all_trials(self._study_id, deepcopy=False)
        states = self._ledger.states(self._study_id, self._unfinished, self._newest)
        complete = [t for t, state in states.items() if state is TrialState.COMPLETE]
        found = [storage.get_trial(trial_id) for trial_id in complete]
        # Only now: where reading fails, they are still new the next time.
        self._newest = max(states, default=self._newest)
        self._unfinished = {t for t, state in states.items() if not state.is_finished()}
        return found


class _Peers:
    """The complete trials as a pruner sees them, with values where other trials were judged."""

    def __init__(self, complete: _CompleteTrials, curve_of: Callable[[FrozenTrial], Curve]) -> None:
        self._complete = complete
        self._curve_of = curve_of
        self._new: list[FrozenTrial] = []  # not shown yet
        self._shown: list[FrozenTrial] = []  # by number
        self._resources: set[int] = set()  # they have values at, if their curves go so far

    def at(self, resources: Collection[int]) -> list[FrozenTrial]:
        """Return all of them, with values at `resources` at least. Do not change the list."""
        self._new += self._complete.new()
        while self._new:
            shown = copy.copy(self._new[-1])
            shown.intermediate_values = curve = self._curve_of(shown)
            shown.values = [curve[max(curve)]] if curve else None
            _lay_out(shown, self._resources)
            insort(self._shown, shown, key=lambda other: other.number)
            self._new.pop()
        more = set(resources) - self._resources
        if more:
            for shown in self._shown:
                _lay_out(shown, more)
            self._resources |= more
        return self._shown


def _lay_out(trial: FrozenTrial, resources: Collection[int]) -> None:
    """Give `trial` its last value at each of `resources` that its curve passes."""
    curve = trial.intermediate_values
    missing = [at for at in resources if at not in curve]
    if not missing or not curve:
        return
    reached = sorted(curve)
    trial.intermediate_values = curve | {
        at: curve[reached[bisect_right(reached, at) - 1]]
        for at in missing
        if reached[0] <= at <= reached[-1]
    }


class _View:
    """An Optuna storage that shows a pruner one direction and the curves that it compares.

    The trial that is judged and the complete trials have these curves. Pruners want no values of
    trials in other states. Everything else, such as the rungs of successive halving, is as it is.
    """

    def __init__(self, storage: Any, direction: StudyDirection, peers: _Peers) -> None:
        self._storage = storage
        self._direction = direction
        self._peers = peers
        self.judged: FrozenTrial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return [self._direction]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Collection[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if states == (TrialState.COMPLETE,):
            return self._peers.at(self.judged.intermediate_values)
        trials: list[FrozenTrial] = self._storage.get_all_trials(
            study_id, deepcopy=False, states=states
        )
        return trials

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        resources = self.judged.intermediate_values
        known = [trial for trial in self._peers.at(resources) if trial.values]
        if not known:
            raise ValueError("no trial is complete")
        better = sign(self._direction)
        best = copy.copy(min(known, key=lambda trial: better * (trial.value or 0.0)))
        values = best.intermediate_values
        best.intermediate_values = {at: values[at] for at in resources if at in values}
        return best
