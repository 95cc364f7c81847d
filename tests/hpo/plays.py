"""Studies played to their end in this process, without Ray, for tests that kill it on the way.

What an attempt says depends on the ledger and on nothing else, as a real training's evaluations
depend on its checkpoint. So a play that is killed and begun again says the same as one that is not,
and must end with the same ledger. Nothing here kills, or asserts.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna

from hpo.control import controller, judge, outage
from hpo.control.attempts import TrialAttempt
from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.control.teaching import TeacherAttempt
from hpo.search.population import Exploit, Member
from hpo.study.config import StudyConfig
from storage import (
    Lease,
    LeaseHeld,
    Ledger,
    Point,
    Reason,
    StudyNotFound,
    StudyRecord,
    TeacherRecord,
)
from storage.copying import copy_study
from trainer.config.train import TrainConfig

LEASE_SECONDS = 0.03  # how long a play waits for the one that was killed
BEAT_SECONDS = 0.05  # between two beats of a heart: the first finds that lease run out
STEPS = 200
NAME = "played"

Told = dict[str, Any]


@dataclass(frozen=True)
class Play:
    """A study, and what happens in it."""

    changes: dict[str, Any]  # to the study file below
    # What an attempt says at an optimizer step, by how earlier attempts at its trial ended; None:
    # nothing any more, for its controller dies.
    says: Callable[[TrialAttempt, int, Counter[Reason | None]], Message | None]
    points: tuple[Point, ...] = ()  # to be tried first
    by_hand: tuple[Point, ...] = ()  # added after the first trial
    teachers: tuple[str, ...] = ()  # keys; one that is called `ready` is found trained
    joins: bool = False  # whether a controller's successor has its heart take the trials over
    copies: bool = (
        False  # whether the ended study is copied to another ledger, which is what counts
    )
    loses_database: bool = False  # whether the database is away for the first trial

    @property
    def decides(self) -> bool:
        """Whether evaluations may end an attempt. Those made while the database is away do not."""
        return not {"pruner", "schedule"}.isdisjoint(self.changes)

    def config(self) -> StudyConfig:
        """The study file."""
        return StudyConfig.model_validate(
            {
                "study": NAME,
                "sampler": {"name": "tpe", "seed": 3, "startup_trials": 2},
                "train": TrainConfig(steps=STEPS).model_dump(mode="json"),
                "space": {
                    "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
                    "layerdrop.p_init": {"type": "float", "low": 0.05, "high": 0.4},
                },
                **self.changes,
            }
        )


def at(step: int, value: float) -> Message:
    """An evaluation, the last one after `STEPS`; a lower `value` is better."""
    kind = "finished" if step == STEPS else "evaluated"
    return Message(kind, step, {"valid_ppl": value + STEPS / step, "step_seconds": 0.1})


def endings(attempt: TrialAttempt, step: int, had: Counter[Reason | None]) -> Message:
    """Each way in which an attempt ends, one trial for each."""
    match attempt.number, step:
        case 1, 200 if not had[Reason.WORKER_LOST]:
            return Message("worker_lost", detail="rank 1 died")
        case 2, _:
            return at(step, 50.0)  # to be pruned
        case 3, 200:
            return Message("diverged", step)
        case 4, 200:
            return Message("error", detail="Traceback\nValueError: boom")
        case 5, 100:
            return Message("out_of_memory")
        case 6, 100:
            return Message("worker_lost", detail="rank 0 died")
    return at(step, 9.0 - attempt.number / 10)


def interrupted(attempt: TrialAttempt, step: int, had: Counter[Reason | None]) -> Message | None:
    """A stop by a person in the second trial; in the third, the controller dies."""
    match attempt.number, step:
        case 1, 200 if not had[Reason.STOPPED]:
            return Message("stopped", step)
        case 2, 200 if not had[Reason.CONTROLLER_LOST]:
            return None
    return at(step, 5.0)


def crashing(attempt: TrialAttempt, step: int, had: Counter[Reason | None]) -> Message | None:
    """The first trial takes its controller down each time."""
    return None if attempt.number == 0 else at(step, 5.0)


def ever_worse(attempt: TrialAttempt, step: int, had: Counter[Reason | None]) -> Message:
    """Each trial is a little worse than the one before."""
    return at(step, 5.0 + attempt.number)


def by_parameters(attempt: TrialAttempt, step: int, had: Counter[Reason | None]) -> Message:
    """A lower learning rate is better; a training under another seed a little worse."""
    return at(step, 1e3 * attempt.params["optim.lr"] + attempt.repeat)


PLAYS = {
    "endings": Play(
        {
            "budget": {"trials": 7},
            "pruner": {"name": "median", "startup_trials": 1},
            "failures": {"max_retries": 1},
        },
        endings,
    ),
    "interrupted": Play(
        {"budget": {"trials": 3}},
        interrupted,
        points=(Point({"optim.lr": 1e-3}, {"study": "earlier", "trial": 7}),),
        by_hand=(Point({"optim.lr": 2e-3}, {"by": "hand"}),),
        joins=True,
    ),
    "crashing": Play(
        {"budget": {"trials": 2}, "failures": {"max_retries": 0}}, crashing, joins=True
    ),
    "doomed": Play(
        {"budget": {"trials": 1}, "failures": {"max_retries": 0}},
        by_parameters,
        teachers=("doomed",),
        joins=True,
    ),
    "halving": Play(
        {
            "budget": {"trials": 4},
            "pruner": {"name": "parked_halving", "min_steps": 100, "reduction_factor": 2},
        },
        ever_worse,
    ),
    "population": Play(
        {"budget": {"trials": 4}, "schedule": {"population": 3, "interval_steps": 100}},
        by_parameters,
    ),
    "repeats": Play({"budget": {"trials": 3}, "repeats": 2}, by_parameters),
    "teachers": Play({"budget": {"trials": 1}}, by_parameters, teachers=("ready", "taught")),
    "away": Play({"budget": {"trials": 2}}, by_parameters, loses_database=True),
    "short": Play({"budget": {"trials": 1}}, by_parameters, copies=True),
}


@dataclass
class _Stage:
    """A play on the way, in one process."""

    play: Play
    ledger: Ledger
    record: StudyRecord
    folder: Path
    config: StudyConfig = field(init=False)

    def __post_init__(self) -> None:
        self.config = self.play.config()

    def live(self) -> bool:
        """Run one controller to its end; whether another has something left to do."""
        lease = self._acquire()
        explore = exploit if self.config.schedule else None
        controller = Controller(
            self.ledger, self.record, self.config, lease, str(self.folder), explore=explore
        )
        while not controller.look_for_end():
            self._enqueue()
            controller.mend()
            attempt = controller.next()
            if isinstance(attempt, TeacherAttempt):
                if attempt.key == "doomed":
                    return True
                self._teach(controller, attempt)
            elif attempt is not None and not self._train(controller, attempt):
                return True
        if controller.broken:
            raise controller.broken
        self.ledger.release(lease)
        return controller.stopping

    def _acquire(self) -> Lease:
        while True:
            try:
                lease = self.ledger.acquire(
                    self.record, seconds=LEASE_SECONDS, join=self.play.joins
                )
            except LeaseHeld as held:
                time.sleep(held.expires_in)
            else:
                if self.play.joins:
                    self._succeed(lease)
                return lease

    def _succeed(self, lease: Lease) -> None:
        """If a controller has died: wait for a heart that beats, until all such are reaped."""

        def states() -> set[str]:
            return {c.state for c in self.ledger.controllers(self.record)[:-1]}

        def seen_at() -> float:
            return self.ledger.controllers(self.record)[-1].seen_at

        before = seen_at()
        if states() <= {"released"}:
            return
        with self.ledger.heartbeat(replace(lease, seconds=3 * BEAT_SECONDS), print):
            while seen_at() == before or "active" in states():
                time.sleep(0.001)

    @contextmanager
    def _database_away(self, attempt: TrialAttempt) -> Iterator[None]:
        """Have the file's folder elsewhere meanwhile."""
        engine = self.ledger.engine
        if not self.play.loses_database or attempt.number > 0:
            yield
            return
        engine.dispose()
        here = Path(engine.url.database or "").parent
        away = here.rename(here.with_suffix(".away"))
        yield
        away.rename(here)

    def _train(self, controller: Controller, attempt: TrialAttempt) -> bool:
        """Play one attempt; whether its controller is still alive."""
        attempts = self.ledger.trial_attempts(attempt.attempt.trial_id)
        had = Counter(earlier.reason for earlier in attempts[:-1])
        with self._database_away(attempt):
            step, goes_on = 0 if attempt.repeat else attempt.reported_step, True
            while goes_on:
                step += 100
                message = self.play.says(attempt, step, had)
                if message is None:
                    return False
                if message.kind == "stopped":
                    self.ledger.request_stop(self.record)
                    controller.stopping = True
                goes_on = controller.handle(attempt.number, attempt.attempt.number, message)
        return True

    def _teach(self, controller: Controller, lesson: TeacherAttempt) -> None:
        attempt = lesson.assignment.attempt
        if attempt == 1:
            controller.handle(lesson.key, 1, Message("worker_lost"))
            return
        controller.handle(
            lesson.assignment.job, lesson.assignment.attempt, Message("evaluated", 20)
        )
        leave_trained(Path(lesson.assignment.document["output_dir"]))
        controller.handle(lesson.key, attempt, Message("finished", 30))

    def _enqueue(self) -> None:
        for point in self.play.by_hand:
            if point.origin not in [t.user_attrs.get("origin") for t in trials(self.ledger)]:
                self.ledger.enqueue(self.record, [point])


def play_to_the_end(name: str, url: str, folder: Path) -> Told:
    """Begin the play, or go on with it, with as many controllers as it takes; how it ended."""
    # Whoever waits in a play waits for nothing.
    judge.FIRST_BACKOFF_SECONDS = outage.FIRST_SECONDS = controller.LOOK_SECONDS = 0.0
    play = PLAYS[name]
    ledger = Ledger.open(url, create=True)
    stage = _Stage(play, ledger, _study(ledger, play, folder), folder)
    while stage.live():
        pass
    return told(_copy(ledger, f"sqlite:///{folder}/copy.db") if play.copies else ledger)


def _copy(ledger: Ledger, to: str) -> Ledger:
    record, copy = ledger.study(NAME), Ledger.open(to, create=True)
    if not copy.studies():
        copy_study(ledger, record, to, name=NAME, document=record.document)
    return copy


def _study(ledger: Ledger, play: Play, folder: Path) -> StudyRecord:
    try:
        return ledger.study(NAME)
    except StudyNotFound:
        config = play.config()
        return ledger.create_study(
            NAME,
            [objective.optuna_direction for objective in config.objectives],
            [objective.metric for objective in config.objectives],
            config.to_document(),
            config.budget.trials,
            [_teacher(folder / key) for key in play.teachers],
            play.points,
        )


def _teacher(folder: Path) -> TeacherRecord:
    if folder.name == "ready":
        leave_trained(folder)
    return TeacherRecord(folder.name, str(folder), TrainConfig(steps=30).to_yaml(), 30)


def leave_trained(folder: Path) -> None:
    """Leave what a teacher's run leaves."""
    (folder / "checkpoints" / "step-00000030").mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({"kind": "finished"}))


def exploit(step: int, members: Sequence[Member]) -> list[Exploit]:
    """The worst member's place is taken by one that goes on from the best."""
    best, worst = (pick(members, key=lambda member: member.value) for pick in (min, max))
    params = {**best.params, "optim.lr": best.params["optim.lr"] * 1.1}
    return [Exploit(worst.number, best.number, params)]


def trials(ledger: Ledger) -> list[optuna.trial.FrozenTrial]:
    """The study's trials."""
    return optuna.load_study(study_name=NAME, storage=ledger.storage).trials


def told(ledger: Ledger) -> Told:
    """All that the ledger says, but for times, and for what became of controllers."""
    record = ledger.study(NAME)
    return {
        "reserved": record.reserved_trials,
        "study": ledger.storage.get_study_user_attrs(record.study_id),
        "controllers": [c.state for c in ledger.controllers(record) if c.state == "active"],
        "waiting": ledger.waiting(record),
        "executed": ledger.open_attempts(record),
        "teachers": [(t.key, t.state, t.step, t.reason) for t in ledger.teachers(record)],
        "trials": [_of_trial(ledger, trial) for trial in trials(ledger)],
    }


def _of_trial(ledger: Ledger, trial: optuna.trial.FrozenTrial) -> Told:
    trial_id = trial._trial_id
    attempts = ledger.trial_attempts(trial_id)
    ended = [a.reason for a in attempts if a.reason is not Reason.CONTROLLER_LOST]
    counted = {"attempts", "device_seconds", "run_dir"}
    return {
        "number": trial.number,
        "state": trial.state.name,
        "params": trial.params,
        "values": trial.values,
        "curve": trial.intermediate_values,
        "on it": {k: v for k, v in trial.user_attrs.items() if k not in counted},
        "of Optuna's": trial.system_attrs,
        "open attempts": [a.number for a in attempts if a.ended_at is None],
        "reasons": ended,
        "metrics": ledger.metrics(trial_id),
        "results": ledger.results(trial_id),
    }
