"""Proposals made in another process, from trials that it is sent; and what one may know.

What a proposal may know is in docs/decisions/0009. Nothing here reads or writes a ledger.
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
    """How a study's proposals are made. It travels to another process."""

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
    """`trials` below `number`, in order, as its proposal may see them.

    What had ended when trial `number` - `concurrent` was asked is as it is. All others are RUNNING,
    with the values of the rungs that they had come to by then.
    """
    horizon = number - concurrent
    return [
        trial if _told_at(trial) <= horizon else _running(trial, horizon)
        for trial in sorted(trials, key=lambda trial: trial.number)
        if trial.number < number
    ]


def _told_at(trial: FrozenTrial) -> float:
    told_at: float = trial.user_attrs.get(TOLD_AT, math.inf)
    return told_at if trial.state.is_finished() else math.inf


def fingerprint(trials: Sequence[FrozenTrial]) -> str:
    """Tells apart what `known` gives for one trial. What is finished changes no more."""
    facts = [
        None
        if trial.state.is_finished()
        else (sorted(trial.params.items()), sorted(trial.intermediate_values.items()))
        for trial in trials
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


class Maker:
    """The other process, seen from the controller. It ends when this object or its process does."""

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
        """Those of `trials` that it does not know as they are now."""
        new = [trial for trial in trials if self._sent.get(trial.number) != _state(trial)]
        try:
            self._connection.send(new)
        except OSError:
            return  # it died; the next `inform` starts another
        self._sent.update({trial.number: _state(trial) for trial in new})

    def received(self) -> list[Proposal]:
        """What has come from it since the last call."""
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
    """The other process: proposals, until the pipe closes."""
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
    """The ledger's trials as far as they were sent; kept up to date by a thread of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._trials: dict[int, FrozenTrial] = {}
        self._news = threading.Condition()
        self._seen = 0
        self._received = 0
        threading.Thread(target=self._receive, daemon=True).start()

    def trials(self) -> list[FrozenTrial]:
        """All of them, by number."""
        with self._news:
            self._seen = self._received
            return sorted(self._trials.values(), key=lambda trial: trial.number)

    def wait(self) -> None:
        """Until there are others than `trials` last gave."""
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
    """The first trial to come without a proposal, and what that may be made from.

    Proposals for the trials before it count as asked: where one of them turns out otherwise, the
    fingerprint changes and the proposal is made again.
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
    """The parameters of trial `number`, which is asked in a study of `trials` alone."""
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


def _running(trial: FrozenTrial, horizon: int) -> FrozenTrial:
    """`trial` as if it were not finished, and had come as far as it had at the `horizon`."""
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
