"""The process that makes proposals from trials that it is sent, and what a proposal may know.

docs/decisions/0009 has the rule. The process never opens the ledger.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.halving import Halving

# User attributes, which tell the order of things by how many trials had been asked by then.
TOLD_AT = "told_at"  # when the trial ended
RUNGS_AT = "rungs_at"  # when it came to each rung: [[step, asked], ...]


@dataclass(frozen=True)
class Recipe:
    """How a study's proposals are made. A recipe travels to another process."""

    name: str
    make: Callable[[], BaseSampler]  # a sampler that needs nothing but the study's trials
    suggest: Callable[[optuna.Trial], object]  # draws all of a trial's parameters
    concurrent_trials: int
    trials: int  # none is proposed from this number on
    halving: Halving | None = None  # whose rungs the sampler is shown


@dataclass(frozen=True)
class Proposal:
    """What the other process answers: parameters, or why there are none."""

    number: int
    fingerprint: str  # of what it was made from
    params: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    error: str | None = None


def known(trials: Sequence[FrozenTrial], number: int, concurrent: int) -> list[FrozenTrial]:
    """Return the trials below `number`, in order, as the proposal for trial `number` may see them.

    A trial that had ended when trial `number` - `concurrent` was asked is shown as it is. Others
    are shown RUNNING, with their values at the rungs that they had reached by then. A trial of
    another program that has values outside of their ranges is shown as failed, without them.
    """
    horizon = number - concurrent
    return [
        _seen(trial, horizon)
        for trial in sorted(trials, key=lambda trial: trial.number)
        if trial.number < number
    ]


def _told_at(trial: FrozenTrial) -> float:
    told_at: float = trial.user_attrs.get(TOLD_AT, math.inf)
    return told_at if trial.state.is_finished() else math.inf


def fingerprint(trials: Sequence[FrozenTrial]) -> str:
    """Return a digest of what `known` gives for one trial. Finished trials no longer change."""
    facts = [
        None
        if trial.state.is_finished()
        else (sorted(trial.params.items()), sorted(trial.intermediate_values.items()))
        for trial in trials
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


class Maker:
    """The controller's side of the other process, which ends with this object or its process."""

    def __init__(
        self, recipe: Recipe, directions: Sequence[StudyDirection], names: list[str] | None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_make, args=(theirs, recipe, directions, names), name="suggestions", daemon=True
        )
        self._process.start()
        theirs.close()  # or the pipe would not end with the process
        self._sent: dict[int, object] = {}

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def send(self, trials: Sequence[FrozenTrial]) -> None:
        """Send the trials that the other process does not know as they are now."""
        new = [trial for trial in trials if self._sent.get(trial.number) != _state(trial)]
        try:
            self._connection.send(new)
        except OSError:
            return  # it died; the next `inform` starts another
        self._sent.update({trial.number: _state(trial) for trial in new})

    def received(self) -> list[Proposal]:
        """Return the proposals that have come since the last call."""
        proposals = []
        try:
            while self._connection.poll():
                proposals.append(self._connection.recv())
        except (EOFError, OSError):
            pass  # it died, perhaps in the middle of a proposal
        return proposals


def _state(trial: FrozenTrial) -> object:
    # What `known` looks at, as far as it changes.
    return trial.state, len(trial.params), len(trial.user_attrs.get(RUNGS_AT, ()))


def _make(
    connection: Connection,
    recipe: Recipe,
    directions: Sequence[StudyDirection],
    names: list[str] | None,
) -> None:
    """Make proposals in the other process until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's, which stops us
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other cores train
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    inbox = _Inbox(connection)
    done: dict[str, Proposal] = {}
    while True:
        task = _task(inbox.trials(), recipe, done)
        if task is None:
            inbox.wait()
            continue
        number, trials = task
        proposal = _proposal(recipe, number, trials, directions, names)
        done[proposal.fingerprint] = proposal
        connection.send(proposal)


class _Inbox:
    """The trials that were sent so far. A thread of its own keeps them up to date."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._trials: dict[int, FrozenTrial] = {}
        self._news = threading.Condition()
        self._seen = 0
        self._received = 0
        threading.Thread(target=self._receive, daemon=True).start()

    def trials(self) -> list[FrozenTrial]:
        """Return all of them, in the order of their numbers."""
        with self._news:
            self._seen = self._received
            return sorted(self._trials.values(), key=lambda trial: trial.number)

    def wait(self) -> None:
        """Wait until something has come since `trials` was called."""
        with self._news:
            self._news.wait_for(lambda: self._received > self._seen)

    def _receive(self) -> None:
        while True:
            try:
                trials = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)  # the controller is gone: whatever is being fitted is for nobody
            with self._news:
                self._trials.update({trial.number: trial for trial in trials})
                self._received += 1
                self._news.notify_all()


def _task(
    trials: list[FrozenTrial], recipe: Recipe, done: dict[str, Proposal]
) -> tuple[int, list[FrozenTrial]] | None:
    """Return the first coming trial that has no proposal, and the trials it may be made from.

    The proposals for the trials before it count as asked. If one of those trials turns out
    otherwise, the fingerprint changes and the proposal is made again.
    """
    first = len(trials)
    for number in range(first, min(first + recipe.concurrent_trials, recipe.trials)):
        seen = known(trials, number, recipe.concurrent_trials)
        proposal = done.get(fingerprint(seen))
        if proposal is None:
            return number, seen
        if proposal.error:
            return None  # until the ledger says what the trial has instead
        trials = [*trials, _asked(proposal)]
    return None


def _proposal(
    recipe: Recipe,
    number: int,
    trials: list[FrozenTrial],
    directions: Sequence[StudyDirection],
    names: list[str] | None,
) -> Proposal:
    """Propose parameters for trial `number` in a study that has only `trials`."""
    study = optuna.create_study(directions=list(directions), sampler=recipe.make())
    try:
        with warnings.catch_warnings(action="ignore"):
            if names is not None:
                study.set_metric_names(names)
            for trial in trials:
                study.add_trial(trial)
            asked = study.ask()
            recipe.suggest(asked)
    except Exception as error:  # noqa: BLE001 whatever it is, it becomes a line in the log
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        return Proposal(number, fingerprint(trials), error=" ".join(reason.split()))
    return Proposal(number, fingerprint(trials), asked.params, asked.distributions)


def _seen(trial: FrozenTrial, horizon: int) -> FrozenTrial:
    """Return `trial` as it was when `horizon` trials had been asked."""
    try:
        running = _running(trial, horizon)
    except ValueError:  # Optuna lets a trial have such values, and then adds it to no study
        seen = create_trial(state=TrialState.FAIL)
        seen.number = trial.number
        return seen
    return trial if _told_at(trial) <= horizon else running


def _running(trial: FrozenTrial, horizon: int) -> FrozenTrial:
    """Return `trial` as it was when `horizon` trials had been asked, and unfinished."""
    seen = create_trial(
        state=TrialState.RUNNING,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values={
            step: trial.intermediate_values[step]
            for step, asked in trial.user_attrs.get(RUNGS_AT, ())
            if asked <= horizon
        },
    )
    seen.number = trial.number
    return seen


def _asked(proposal: Proposal) -> FrozenTrial:
    trial = create_trial(
        state=TrialState.RUNNING, params=proposal.params, distributions=proposal.distributions
    )
    trial.number = proposal.number
    return trial
