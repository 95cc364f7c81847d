"""Suggestions made ahead of their trials in another process, so that asking waits for no model.

A `Recipe` says which sampler proposes; this module does not know Ax. What a proposal may know is
fixed and can be read back from the ledger, so that a resumed controller proposes what a dead one
would have proposed (docs/decisions/0009). The proposal for a trial may know, of the trials with
lower numbers: which had finished when the trial `concurrent_trials` before it was asked, and of
all others their parameters and their values at the rungs that they had reached by then. Work at a
proposal begins that early, beside the trainings. A trial whose proposal is not ready in time gets
one that came too late for an earlier trial, or else random parameters; the trial's user attribute
`suggested_by` says which. This module writes nothing but user attributes of trials.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from hpo.search.pruners import PrunerConfig
from hpo.search.samplers.at_rungs import make_shown_rungs, rungs_of
from hpo.search.samplers.config import Random, SamplerConfig, make_sampler
from hpo.search.samplers.proposals import (
    RUNGS_AT,
    TOLD_AT,
    Maker,
    Proposal,
    Recipe,
    fingerprint,
    known,
)
from hpo.search.space import Space, suggest

logger = logging.getLogger("hpo.ahead")

SUGGESTED_BY = "suggested_by"  # user attribute: the sampler's name, the same with LATE, or FALLBACK
LATE = ", late"
FALLBACK = "fallback"

SLOW = frozenset({"ax"})  # samplers whose proposals take seconds

START_SECONDS = 120.0  # the first proposals of a controller are waited for that long, all together
PATIENCE = 0.02  # every later one for this share of a trial's median length


def make_ahead(
    sampler: SamplerConfig,
    space: Space,
    pruner: PrunerConfig,
    *,
    concurrent_trials: int,
    trials: int,
) -> AheadSampler | None:
    """Return the sampler that makes suggestions ahead for a study of `trials` trials in all.

    None if `sampler` is fast, and so asked when a trial begins.
    """
    if sampler.name not in SLOW:
        return None
    recipe = Recipe(
        sampler.name,
        partial(make_shown_rungs, sampler, space, pruner),
        partial(suggest, space),
        concurrent_trials,
        trials,
        rungs_of(pruner),
    )
    return AheadSampler(recipe, make_sampler(Random(name="random", seed=sampler.seed), space))


class AheadSampler(BaseSampler):
    """Hands out a recipe's proposals, or draws from `fallback` if none is there in time."""

    def __init__(self, recipe: Recipe, fallback: BaseSampler) -> None:
        self._recipe = recipe
        self._fallback = fallback
        self._maker: Maker | None = None
        self._proposals: dict[int, Proposal] = {}
        self._said: set[str] = set()
        self._started = time.monotonic()
        self._delivered = False  # whether any proposal came since then
        self._missed: dict[int, float] = {}  # when a trial's proposal was first found missing
        self._given: tuple[int, Proposal | None] = -1, None  # to the trial being asked
        self._last_late = -1  # the last trial that took another's proposal

    def inform(self, study: optuna.Study) -> None:
        """Send what is new to the process, and start it if it is not alive. Waits for nothing."""
        if self._maker is None or not self._maker.alive:
            names = None if study.metric_names is None else list(study.metric_names)
            try:
                self._maker = Maker(self._recipe, study.directions, names)
            except OSError as error:
                return self._say(f"no process for {self._recipe.name}'s suggestions: {error}")
        self._maker.send(_trials(study))
        return None

    def ready(self, study: optuna.Study) -> bool:
        """Whether the next trial's proposal is there, or has been waited for long enough."""
        trials = _trials(study)
        number = len(trials)
        if number >= self._recipe.trials or any(t.state is TrialState.WAITING for t in trials):
            return True  # the budget is spent, or the trial was enqueued
        if self._maker is None:
            self.inform(study)
        if self._find(trials, number) or self._died():
            return True
        since = self._missed.setdefault(number, time.monotonic())
        lengths = [t.duration.total_seconds() for t in trials if t.duration is not None]
        if lengths and self._delivered:
            return time.monotonic() - since >= PATIENCE * statistics.median(lengths)
        return time.monotonic() - self._started >= START_SECONDS

    def reported(self, study: optuna.Study, trial_id: int, step: int) -> None:
        """Keep on the trial when it has come to a new rung, in the transaction that reports it."""
        halving, trial = self._recipe.halving, study._storage.get_trial(trial_id)
        if halving is None or step not in halving.reached_at(trial.intermediate_values):
            return
        rungs = [*trial.user_attrs.get(RUNGS_AT, ()), [step, _asked(study)]]
        study._storage.set_trial_user_attr(trial_id, RUNGS_AT, rungs)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, *end: Any) -> None:
        """Keep when the trial ended, in the transaction that ends it."""
        study._storage.set_trial_user_attr(trial._trial_id, TOLD_AT, _asked(study))

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the proposal's search space, if there is a proposal, and note its origin."""
        trials = _trials(study)
        proposal, by = self._find(trials, trial.number), self._recipe.name
        if proposal is None or proposal.error:
            proposal, by = self._late(trials, trial.number), self._recipe.name + LATE
        if proposal is None:
            by = FALLBACK
        study._storage.set_trial_user_attr(trial._trial_id, SUGGESTED_BY, by)
        self._given = trial.number, proposal
        return {} if proposal is None else proposal.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the proposal, if there is one."""
        number, proposal = self._given
        return {} if proposal is None or number != trial.number else proposal.params

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, *parameter: Any) -> Any:
        """Return what the fallback draws."""
        return self._fallback.sample_independent(study, trial, *parameter)

    def _find(self, trials: Sequence[FrozenTrial], number: int) -> Proposal | None:
        """Return the proposal for trial `number`, if it has come and fits the ledger."""
        for came in self._maker.received() if self._maker else ():
            self._delivered = True
            self._proposals[came.number] = came
            if came.error:
                self._say(f"no suggestion from {self._recipe.name}: {came.error}")
        proposal = self._proposals.get(number)
        return proposal if proposal and self._fits(trials, proposal) else None

    def _late(self, trials: Sequence[FrozenTrial], number: int) -> Proposal | None:
        """Return the newest proposal that came too late for its own trial and was not taken yet."""
        for earlier in range(number - 1, self._last_late, -1):
            proposal = self._proposals.get(earlier)
            by = trials[earlier].user_attrs.get(SUGGESTED_BY)
            if by != FALLBACK or not proposal or proposal.error:
                continue
            # Another controller may have taken it.
            taken = any(trial.params == proposal.params for trial in trials)
            if not taken and self._fits(trials, proposal):
                self._last_late = number
                return proposal
        return None

    def _fits(self, trials: Sequence[FrozenTrial], proposal: Proposal) -> bool:
        """Whether the proposal was made from what the ledger has."""
        made_from = known(trials, proposal.number, self._recipe.concurrent_trials)
        return proposal.fingerprint == fingerprint(made_from)

    def _died(self) -> bool:
        if self._maker is None:
            return True  # there could be none, which `inform` has said
        if self._maker.alive:
            return False
        self._say(
            f"the process that makes {self._recipe.name}'s suggestions died; it is started "
            "again, and points are random until then"
        )
        return True

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            logger.warning(line)


def _asked(study: optuna.Study) -> int:
    return sum(trial.state is not TrialState.WAITING for trial in _trials(study))


def _trials(study: optuna.Study) -> list[FrozenTrial]:
    # Not `study.get_trials`: a pruner may have made it show some of them only.
    return study._storage.get_all_trials(study._study_id, deepcopy=False)
