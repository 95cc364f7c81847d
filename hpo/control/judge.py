"""How attempts end (docs/life-of-a-trial.md has the table), pruning, parking, what Optuna is told.

Called by the controller inside its transactions. Nothing here knows who runs attempts, or decides
what runs next.
"""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.trial import TrialState

from hpo.control.assignment import Assignment, Verdict
from hpo.control.messages import Message, last_line
from hpo.control.pruning import Pruning
from hpo.control.repeats import mean_metrics, promising, standard_errors
from hpo.search.constraints import violations
from hpo.search.halving import Curve, Halving
from hpo.search.population import Population
from hpo.search.pruners import ParkedHalving
from hpo.search.samplers.ahead import reported
from hpo.study.config import StudyConfig
from storage import Ledger, Reason, Transaction

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 300.0


def backoff(lost: int) -> float:
    """Seconds before the next attempt, after `lost` of them in a row have lost a worker."""
    return min(FIRST_BACKOFF_SECONDS * 4.0 ** (lost - 1), LONGEST_BACKOFF_SECONDS)


class Judge:
    """Writes what attempts at a study's trials say, and gives its verdict on each."""

    def __init__(
        self,
        ledger: Ledger,
        study: optuna.Study,
        config: StudyConfig,
        population: Population | None = None,
    ) -> None:
        self._ledger = ledger
        self._study = study
        self._config = config
        self._population = population
        self._metrics = [objective.metric for objective in config.objectives]
        self._pruning = Pruning(ledger, study, config)
        pruner = config.pruner
        self.halving: Halving | None = None
        if isinstance(pruner, ParkedHalving):
            self.halving = Halving(pruner.minimum, pruner.reduction_factor)

    def write(
        self, transaction: Transaction, assignment: Assignment, message: Message, *, decide: bool
    ) -> Verdict | None:
        """Write `message`, and the end of its attempt if it is one; None if the attempt goes on.

        Unless it is to `decide` now an evaluation ends none: it has gone on meanwhile.
        """
        if message.first_step is not None:
            transaction.record_first_step(assignment.attempt, message.first_step)
        if message.kind in ("evaluated", "finished"):
            self._record(transaction, assignment, message)
        if message.kind == "evaluated" and not decide:
            return None
        verdict = self._verdict(transaction, assignment, message)
        if verdict is None:
            return None
        transaction.end_attempt(
            assignment.attempt, verdict.reason, message.detail, step=message.step
        )
        if verdict.state is not None:
            self._finish(assignment, message, verdict, verdict.state)
        else:
            parked = verdict.reason is Reason.PARKED
            transaction.wait(assignment.attempt.trial_id, seconds=verdict.again_in, parked=parked)
        return verdict

    def wrote(self, assignment: Assignment, message: Message) -> None:
        """Know that `message` is in the ledger."""
        if message.kind in ("evaluated", "finished") and assignment.repeat == 0:
            assignment.reported_step = max(assignment.reported_step, message.step)

    def written(self, assignment: Assignment) -> Verdict:
        """How an attempt ended, as the ledger has it."""
        ended = self._ledger.trial_attempts(assignment.attempt.trial_id)
        attempt = ended[assignment.attempt.number - 1]
        state = self._ledger.storage.get_trial(attempt.trial_id).state
        return Verdict(attempt.reason, state if state.is_finished() else None)

    def retire(self, trial: optuna.Trial, reason: Reason = Reason.PRUNED) -> None:
        """End a parked trial that will not go on any more, as pruned where it stands."""
        self._tell(trial, trial._trial_id, reason, TrialState.PRUNED)

    def curves(self) -> Mapping[int, Curve]:
        """What `halving` compares: each trial's values by resource, by its number."""
        return self._pruning.curves()

    def _record(self, transaction: Transaction, assignment: Assignment, message: Message) -> None:
        if assignment.repeat > 0:
            # The curves in the ledger are those of the first training.
            transaction.record_last_step(assignment.attempt, message.step)
            return
        transaction.record_metrics(assignment.attempt, message.step, message.metrics)
        transaction.record_depth_front(assignment.attempt, message.step, message.depth_front)
        value = message.metrics.get(self._metrics[0])  # some come only at the end
        # A re-adopted trial's late lines may be in the ledger already.
        new = message.step > assignment.reported_step
        if len(self._metrics) == 1 and value is not None and new:
            assignment.trial.report(value, message.step)
            reported(self._study, assignment.attempt.trial_id, message.step)

    def _verdict(
        self, transaction: Transaction, assignment: Assignment, message: Message
    ) -> Verdict | None:
        match message.kind:
            case "evaluated":
                return self._at_evaluation(assignment, message.step)
            case "finished":
                return self._at_last_step(transaction, assignment, message)
            case "diverged":
                return Verdict(Reason.DIVERGED, TrialState.PRUNED)
            case "out_of_memory":
                return Verdict(Reason.OUT_OF_MEMORY, TrialState.PRUNED)
            case "error":
                return Verdict(Reason.ERROR, TrialState.FAIL)
            case "stopped":
                return Verdict(Reason.STOPPED, None)
            case "disk":
                return Verdict(Reason.DISK, None)
            case "busy":
                return Verdict(Reason.BUSY, None, again_in=backoff(self._busy(assignment)))
            case "worker_lost":
                lost = 1 + self._lost(assignment.attempt.trial_id)
                if lost > self._config.failures.max_retries:
                    return Verdict(Reason.WORKER_LOST, TrialState.FAIL)
                return Verdict(Reason.WORKER_LOST, None, again_in=backoff(lost))

    def _lost(self, trial_id: int) -> int:
        """Attempts that the training in progress, of perhaps several, has lost a worker in."""
        lost = 0
        for attempt in self._ledger.trial_attempts(trial_id):
            finished = attempt.ended_at is not None and attempt.reason is None
            lost = 0 if finished else lost + (attempt.reason is Reason.WORKER_LOST)
        return lost

    def _busy(self, assignment: Assignment) -> int:
        """Attempts in a row that found another process in the trial's run folder, this one too."""
        reasons = [a.reason for a in self._ledger.trial_attempts(assignment.attempt.trial_id)[:-1]]
        others = (n for n, reason in enumerate(reversed(reasons)) if reason is not Reason.BUSY)
        return 1 + next(others, len(reasons))

    def _at_evaluation(self, assignment: Assignment, step: int) -> Verdict | None:
        if assignment.repeat > 0:
            return None
        if self._population is not None:
            return Verdict(Reason.PARKED, None) if assignment.waits_at(step) else None
        if step <= assignment.reported_step:
            return None  # trained again from an earlier checkpoint; it was judged there
        if self.halving is not None:
            curves = self.curves()
            resource = max(curves[assignment.number], default=0)
            goes_on = self.halving.goes_on(assignment.number, resource, curves)
            return None if goes_on else Verdict(Reason.PARKED, None)
        prune = self._pruning.should_prune(assignment.trial)
        return Verdict(Reason.PRUNED, TrialState.PRUNED) if prune else None

    def _at_last_step(
        self, transaction: Transaction, assignment: Assignment, message: Message
    ) -> Verdict:
        if self._config.repeats == 1:
            return Verdict(None, TrialState.COMPLETE, means=message.metrics)
        transaction.record_result(assignment.attempt, assignment.repeat, message.metrics)
        results = self._ledger.results(assignment.attempt.trial_id)
        means = mean_metrics(results)
        infeasible = any(v > 0 for v in self._violations(assignment.attempt.trial_id, means))
        enough = (
            len(results) >= self._config.repeats
            or infeasible
            or not promising(
                [means[metric] for metric in self._metrics],
                self._study.get_trials(deepcopy=False),
                self._study.directions,
            )
        )
        if not enough:
            return Verdict(None, None)
        return Verdict(None, TrialState.COMPLETE, means=means)

    def _finish(
        self, assignment: Assignment, message: Message, verdict: Verdict, state: TrialState
    ) -> None:
        trial, trial_id = assignment.trial, assignment.attempt.trial_id
        if said := last_line(message.detail):
            trial.set_user_attr("detail", said)
        results = self._ledger.results(trial_id) if self._config.repeats > 1 else []
        if len(results) > 1:
            trial.set_user_attr("repeats", len(results))
            trial.set_user_attr("standard_errors", standard_errors(results, self._metrics))
        self._tell(trial, trial_id, verdict.reason, state, verdict.means)

    def _tell(
        self,
        trial: optuna.Trial,
        trial_id: int,
        reason: Reason | None,
        state: TrialState,
        means: dict[str, float] | None = None,
    ) -> None:
        """Tell Optuna, and leave on the trial what its dashboard shows."""
        attempts = self._ledger.trial_attempts(trial_id)
        trial.set_user_attr("attempts", len(attempts))
        trial.set_user_attr("device_seconds", round(sum(a.device_seconds for a in attempts), 3))
        if reason is not None:
            trial.set_user_attr("reason", reason.value)
        found = self._violations(trial_id, means, reason)
        if found and state is not TrialState.FAIL:
            # `Trial.set_constraint` writes what the dashboard does not read; all read this.
            self._ledger.storage.set_trial_system_attr(trial_id, "constraints", found)
        values = [means[metric] for metric in self._metrics] if means else None
        self._study.tell(trial, values, state=state)

    def _violations(
        self, trial_id: int, means: Mapping[str, float] | None, reason: Reason | None = None
    ) -> list[float]:
        """A trial's violations by what its trainings came to, or else by its last metrics."""
        known: dict[str, float] = {}
        for metrics in self._ledger.metrics(trial_id).values() if self._config.constraints else ():
            known |= metrics
        return violations(
            self._config.constraints,
            {**known, **(means or {})},
            out_of_memory=reason is Reason.OUT_OF_MEMORY,
        )
