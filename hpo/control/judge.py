"""Writes what attempts at trials say, and decides how they end.

docs/life-of-a-trial.md has the table of endings. The controller calls the judge inside its
transactions. The judge does not know who runs attempts, and does not decide what runs next.
"""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import TrialState

from hpo.control.attempts import TrialAttempt
from hpo.control.endings import Endings, Verdict
from hpo.control.leased import LeasedStudy
from hpo.control.losses import losses
from hpo.control.messages import Message, last_line
from hpo.control.parking import Parking
from hpo.control.pruning import Pruning
from hpo.control.repeats import mean_metrics, promising, standard_errors
from hpo.control.suggestions import Suggestions
from storage import Reason, Transaction

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 300.0


def backoff(lost: int) -> float:
    """Return the seconds before the next attempt, after `lost` attempts in a row lost a worker."""
    return min(FIRST_BACKOFF_SECONDS * 4.0 ** (lost - 1), LONGEST_BACKOFF_SECONDS)


@dataclass
class Judge:
    """Writes what attempts at a study's trials say, and gives its verdict on each."""

    _leased: LeasedStudy
    _suggestions: Suggestions
    _pruning: Pruning
    _parking: Parking
    _endings: Endings

    def write(
        self, transaction: Transaction, attempt: TrialAttempt, message: Message, *, decide: bool
    ) -> Verdict | None:
        """Write `message`, and the end of its attempt if it is one; None if the attempt goes on.

        Without `decide` an evaluation ends no attempt: the attempt has gone on meanwhile.
        """
        if message.first_step is not None:
            transaction.record_first_step(attempt.attempt, message.first_step)
        if message.measured:
            self._record(transaction, attempt, message)
        if message.kind == "evaluated" and not decide:
            return None
        verdict = self._verdict(transaction, attempt, message)
        if verdict is None:
            return None
        transaction.end_attempt(attempt.attempt, verdict.reason, message.detail, step=message.step)
        if verdict.state is not None:
            self._finish(attempt, message, verdict, verdict.state)
        else:
            parked = verdict.reason is Reason.PARKED
            transaction.wait(attempt.attempt.trial_id, seconds=verdict.again_in, parked=parked)
        return verdict

    def leave(
        self, transaction: Transaction, attempt: TrialAttempt, state: TrialState | None
    ) -> Verdict:
        """End an attempt at a trial that another program has ended, or deleted (`state` None)."""
        transaction.end_attempt(attempt.attempt, Reason.OUTSIDE, None)
        return Verdict(Reason.OUTSIDE, state or TrialState.FAIL)

    def written(self, attempt: TrialAttempt) -> Verdict:
        """Return how an attempt ended, as the ledger has it."""
        ledger, row = self._leased.ledger, attempt.attempt
        ended = ledger.trial_attempts(row.trial_id)[row.number - 1]
        state = ledger.storage.get_trial(row.trial_id).state
        return Verdict(ended.reason, state if state.is_finished() else None)

    def _record(self, transaction: Transaction, attempt: TrialAttempt, message: Message) -> None:
        if not attempt.is_new(message.step):
            # The curves in the ledger are those of the first training, as they were first written.
            transaction.record_last_step(attempt.attempt, message.step)
            return
        transaction.record_metrics(attempt.attempt, message.step, message.metrics)
        transaction.record_depth_front(attempt.attempt, message.step, message.depth_front)
        objectives = self._leased.metrics
        value = message.metrics.get(objectives[0])  # some come only at the end
        if len(objectives) == 1 and value is not None:
            attempt.trial.report(value, message.step)
            self._suggestions.reported(attempt.attempt.trial_id, message.step)

    def _verdict(
        self, transaction: Transaction, attempt: TrialAttempt, message: Message
    ) -> Verdict | None:
        match message.kind:
            case "evaluated":
                return self._at_evaluation(attempt, message.step)
            case "finished":
                return self._at_last_step(transaction, attempt, message)
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
                return Verdict(Reason.BUSY, None, again_in=backoff(self._busy(attempt)))
            case "worker_lost":
                attempts = self._leased.ledger.trial_attempts(attempt.attempt.trial_id)
                lost = 1 + losses(attempts, [Reason.WORKER_LOST])
                if lost > self._leased.config.failures.max_retries:
                    return Verdict(Reason.WORKER_LOST, TrialState.FAIL)
                return Verdict(Reason.WORKER_LOST, None, again_in=backoff(lost))

    def _busy(self, attempt: TrialAttempt) -> int:
        """Count the attempts in a row, this one too, that found the run folder in use."""
        attempts = self._leased.ledger.trial_attempts(attempt.attempt.trial_id)
        reasons = [earlier.reason for earlier in attempts[:-1]]
        others = (n for n, reason in enumerate(reversed(reasons)) if reason is not Reason.BUSY)
        return 1 + next(others, len(reasons))

    def _at_evaluation(self, attempt: TrialAttempt, step: int) -> Verdict | None:
        if attempt.repeat > 0:
            return None
        if self._parking.parks(attempt, step):
            return Verdict(Reason.PARKED, None)
        # An evaluation that was trained again, from an earlier checkpoint, was judged before.
        if attempt.is_new(step) and self._pruning.should_prune(attempt.trial):
            return Verdict(Reason.PRUNED, TrialState.PRUNED)
        return None

    def _at_last_step(
        self, transaction: Transaction, attempt: TrialAttempt, message: Message
    ) -> Verdict:
        trial_id, metrics = attempt.attempt.trial_id, message.metrics
        if attempt.repeat == 0:  # its last evaluation may have been written by an earlier attempt
            metrics = metrics | self._leased.ledger.metrics(trial_id)[message.step]
        if self._leased.config.repeats == 1:
            return Verdict(None, TrialState.COMPLETE, means=metrics)
        transaction.record_result(attempt.attempt, attempt.repeat, metrics)
        results = self._leased.ledger.results(trial_id)
        means = mean_metrics(results)
        infeasible = any(v > 0 for v in self._endings.violations(trial_id, means))
        enough = (
            len(results) >= self._leased.config.repeats
            or infeasible
            or not promising(
                [means[metric] for metric in self._leased.metrics],
                self._leased.study.get_trials(deepcopy=False),
                self._leased.study.directions,
            )
        )
        if not enough:
            return Verdict(None, None)
        return Verdict(None, TrialState.COMPLETE, means=means)

    def _finish(
        self, attempt: TrialAttempt, message: Message, verdict: Verdict, state: TrialState
    ) -> None:
        trial = attempt.trial
        if said := last_line(message.detail):
            trial.set_user_attr("detail", said)
        repeats = self._leased.config.repeats > 1
        results = self._leased.ledger.results(attempt.attempt.trial_id) if repeats else []
        if len(results) > 1:
            trial.set_user_attr("repeats", len(results))
            trial.set_user_attr("standard_errors", standard_errors(results, self._leased.metrics))
        self._endings.tell(trial, verdict.reason, state, verdict.means)
