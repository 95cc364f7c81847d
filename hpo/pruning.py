"""What a study's pruner compares: which metric, at equal optimizer steps or at equal tokens.

Optuna prunes by its own intermediate values, of the one objective, by step. Here its pruners are
shown a view of the study, made of the metrics in the ledger: one metric with one direction, and
every trial's last value at the resources of the trial that is judged. So trials are compared where
each has used as much, also if they were not evaluated just there. Optuna's own values stay the
objective's by step, for the dashboard and for tpe.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.objectives import HYPERVOLUME, check_measured, comes_late
from hpo.pruners import comparison
from hpo.space import values_of
from storage import Ledger
from trainer.sections import EvaluationConfig
from trainer.settings import ConfigError, get_path

if TYPE_CHECKING:
    from hpo.study import StudyConfig

Curve = dict[int, float]  # value by resource, in order

OVERLAP_SECONDS = 60.0  # that are read twice


def check_pruner(config: StudyConfig, evaluation: EvaluationConfig, source: str) -> None:
    """Raise ConfigError unless trials report what the pruner compares while they run."""
    if config.pruner.name == "none":
        return
    compared = comparison(config.pruner)
    metric = (compared and compared.metric) or config.objectives[0].metric
    check_measured(metric, evaluation, f"{source}: pruner.metric")
    direction = (compared and compared.direction) or next(
        (o.direction for o in config.objectives if o.metric == metric), "minimize"
    )
    if metric == HYPERVOLUME and direction == "minimize":
        raise ConfigError(f"{source}: pruner.direction: a larger {metric} is better; use maximize")
    if comes_late(metric, evaluation):
        raise ConfigError(
            f"{source}: pruner.name: {config.pruner.name} compares {metric} while trials run; set "
            "evaluation.depths_at: each in the train config, or use none"
        )


def make_pruner(config: StudyConfig) -> optuna.pruners.BasePruner:
    """The study's pruner, for trials as long as its longest."""
    compared = comparison(config.pruner)
    longest = int(max(values_of(config.space, config.train, "steps")))
    if compared is not None and compared.unit == "tokens":
        for path in ("data.batch_size", "data.context"):
            longest *= int(max(values_of(config.space, config.train, path)))
    return config.pruner.make(longest)


class Pruning:
    """Asks a study's pruner whether its running trials go on."""

    def __init__(self, ledger: Ledger, study: optuna.Study, config: StudyConfig) -> None:
        self._study = study
        self._config = config
        self._compared = comparison(config.pruner)
        objectives = {objective.metric: objective.direction for objective in config.objectives}
        self._metric = config.objectives[0].metric
        direction = objectives[self._metric]
        if self._compared is not None and self._compared.metric is not None:
            self._metric = self._compared.metric
            direction = self._compared.direction or objectives.get(self._metric, "minimize")
        self._direction = StudyDirection[direction.upper()]
        self._ledger = ledger
        # The metric by step, and what a step counts, by the trial's id.
        self._curves: dict[int, Curve] = {}
        self._read_at = 0.0
        self._units: dict[int, int] = {}

    def should_prune(self, trial: optuna.Trial) -> bool:
        """Whether `trial` should stop where it is."""
        if self._compared is None:
            return False
        self._read()
        curve = self._by_resource(self._study._storage.get_trial(trial._trial_id))
        if max(curve, default=0) < self._compared.minimum:
            return False
        view = _View(self._study._storage, self._direction, self._by_resource, list(curve))
        study = optuna.Study(self._study.study_name, view, pruner=self._study.pruner)  # type: ignore[arg-type]
        return study.pruner.prune(study, view.get_trial(trial._trial_id))

    def curves(self) -> dict[int, Curve]:
        """Every trial's values of the metric by resource, to be made small, by its number."""
        self._read()
        sign = -1 if self._direction is StudyDirection.MAXIMIZE else 1
        return {
            trial.number: {at: sign * value for at, value in self._by_resource(trial).items()}
            for trial in self._study.get_trials(deepcopy=False)
        }

    def _read(self) -> None:
        """What any controller of the study has reported since the last time."""
        # A transaction may commit later than it took the time.
        since, self._read_at = self._read_at - OVERLAP_SECONDS, self._ledger.now()
        news = self._ledger.curves(self._study._study_id, self._metric, since)
        for trial_id, curve in news.items():
            self._curves.setdefault(trial_id, {}).update(curve)

    def _by_resource(self, trial: FrozenTrial) -> Curve:
        curve = self._curves.get(trial._trial_id)
        if not curve:
            return {}
        unit = self._unit(trial)
        return {step * unit: curve[step] for step in sorted(curve)}

    def _unit(self, trial: FrozenTrial) -> int:
        """The resource of one optimizer step of `trial`."""
        if self._compared is None or self._compared.unit == "steps":
            return 1
        if trial._trial_id not in self._units:
            document = self._config.trial_document(trial.params, "")
            tokens = get_path(document, "data.batch_size") * get_path(document, "data.context")
            self._units[trial._trial_id] = int(tokens)
        return self._units[trial._trial_id]


class _View:
    """A storage whose study has one direction, and whose trials have other curves.

    Everything else, the rungs of successive halving too, is the storage's own.
    """

    def __init__(
        self, storage: Any, direction: StudyDirection, curve_of: Any, resources: list[int]
    ) -> None:
        self._storage = storage
        self._direction = direction
        self._curve_of = curve_of
        self._resources = resources

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return [self._direction]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._shown(self._storage.get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Collection[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self._storage.get_all_trials(study_id, deepcopy=False, states=states)
        return [self._shown(trial) for trial in trials]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        complete = self.get_all_trials(study_id, states=(TrialState.COMPLETE,))
        known = [trial for trial in complete if trial.values]
        if not known:
            raise ValueError("no trial is complete")
        sign = -1 if self._direction is StudyDirection.MAXIMIZE else 1
        return min(known, key=lambda trial: sign * (trial.value or 0.0))

    def _shown(self, trial: FrozenTrial) -> FrozenTrial:
        shown, curve = copy.copy(trial), self._curve_of(trial)
        reached = list(curve)
        shown.intermediate_values = {
            at: curve[reached[bisect_right(reached, at) - 1]]
            for at in self._resources
            if reached and reached[0] <= at <= reached[-1]
        }
        done = trial.state is TrialState.COMPLETE and reached
        shown.values = [curve[reached[-1]]] if done else None
        return shown
