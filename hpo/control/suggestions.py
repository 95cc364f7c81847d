"""Where a study's parameters come from: its sampler, and what that makes ahead of its trials.

The controller alone talks to this, so that nobody else has to know which samplers are slow.
"""

from __future__ import annotations

from hpo.control.leased import LeasedStudy
from hpo.search.samplers.ahead import make_ahead
from hpo.search.samplers.at_rungs import make_shown_rungs
from hpo.search.samplers.distinct import Distinct


class Suggestions:
    """The suggestions for one study's trials. Called under the controller's lock."""

    def __init__(self, leased: LeasedStudy) -> None:
        """Give the study its sampler, for its budget of trials."""
        self._study = leased.study
        self._config = leased.config
        self.plan(leased.record.budget_trials)

    def plan(self, trials: int) -> None:
        """Plan for another budget of trials: what was made ahead is for the old one."""
        config = self._config
        self._ahead = make_ahead(
            config.sampler,
            config.space,
            config.pruner,
            concurrent_trials=config.resources.concurrent_trials,
            trials=trials,
        )
        if self._ahead is None:
            sampler = make_shown_rungs(config.sampler, config.space, config.pruner)
        else:
            sampler = Distinct(self._ahead, config.space)
        self._study.sampler = sampler

    @property
    def ready(self) -> bool:
        """Whether to ask for a trial now. A fast sampler is always ready."""
        return self._ahead is None or self._ahead.ready(self._study)

    def inform(self) -> None:
        """Let a sampler that works ahead know what the ledger has now."""
        if self._ahead is not None:
            self._ahead.inform(self._study)

    def reported(self, trial_id: int, step: int) -> None:
        """Keep, for a sampler that works ahead, when the trial came to a rung."""
        if self._ahead is not None:
            self._ahead.reported(self._study, trial_id, step)
