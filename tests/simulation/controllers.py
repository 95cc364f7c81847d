"""A simulated machine that runs a study: one process after the other, each with one controller.

A process is what `hpo resume` starts (hpo/service/run.py), with Tune's part played: three actors,
the main thread, the heartbeat and the guard.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from random import Random
from typing import Any

import optuna

from hpo.control.controller import Controller
from hpo.control.outage import LEDGER_ERRORS, DiskAway
from hpo.service.guard import Guard
from hpo.study.config import StudyConfig
from storage import (
    LEASE_SECONDS,
    Lease,
    LeaseHeld,
    LeaseLost,
    Ledger,
    StudyNotFound,
    StudyRecord,
    is_away,
)
from tests.simulation.database import Database
from tests.simulation.gangs import Gang, Owner, Site
from tests.simulation.world import Actor, Lock, Process, Violation, World

NAME = "simulated"
POLL_SECONDS = 5.0  # of a guard, and of a controller that has nothing to do
RUNS = "/simulated/runs"


@dataclass
class Stage:
    """What all machines of one schedule share."""

    world: World
    database: Database
    site: Site
    config: StudyConfig
    record: StudyRecord
    explore: Any
    joins: bool
    random: Random
    trials: int | None = None  # the budget that a person has asked for, and nobody has taken yet
    name: str = NAME  # of the study, now
    may_be_deleted: bool = False
    deleted: bool = False
    another: int | None = None  # a study that was made after that
    most_lives: int = 25
    outside: set[int] = field(default_factory=set)  # ids of trials that others have ended
    machines: list[Machine] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)  # the n-th has pid n
    one_host: bool = True

    def another_machine(self) -> None:
        """Let one machine more run the study."""
        self.machines.append(machine := Machine(self, len(self.machines)))
        machine.begin()


class Machine:
    """Runs the study until it is done, in as many processes as that takes."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.number = number
        self.points = self.commits = 0
        self.life: Life | None = None
        self.done = False
        self.lives = 0
        self.in_vain = 0  # of them: the database was away
        self._stage = stage

    def begin(self) -> None:
        """Start the next process."""
        if self.done or self.life is not None:
            return
        self.lives += 1
        if self.lives - self.in_vain > self._stage.most_lives:
            text = f"machine {self.number} has had {self.lives} processes"
            raise Violation("too many restarts", text)
        self.life = Life(self._stage, self)

    def kill(self, outlive: float) -> None:
        """Kill the process, as SIGKILL does; its gangs live on for so long."""
        if self.life is not None:
            life, self.life = self.life, None
            self._stage.world.kill(life.process)
            for gang in [*life.owner.running.values()]:
                gang.outlive(outlive)
            self._again(self._stage.random.uniform(1.0, 20.0))

    def kill_after(self, process: Process, outlive: float) -> None:
        """Its process is to be killed right after a commit, by whoever commits."""
        if self.life is not None and self.life.process is process:
            life, self.life = self.life, None
            for gang in [*life.owner.running.values()]:
                gang.outlive(outlive)
            self._again(self._stage.random.uniform(1.0, 20.0))

    def ended(self, life: Life, how: str) -> None:
        """The process has left by itself."""
        assert self.life is life
        self.life = None
        life.process.ended = True
        for gang in [*life.owner.running.values()]:
            gang.outlive(2.0)
        self._stage.world.note(f"{life.process} leaves: {how}")
        self.in_vain += how == "away"
        if how in ("done", "deleted"):
            self.done = True
            if all(machine.done for machine in self._stage.machines):
                self._stage.world.stop()
        else:
            self._again(self._stage.random.uniform(2.0, 30.0))

    def _again(self, seconds: float) -> None:
        self._stage.world.at(seconds, self.begin)


class Life:
    """One process of a machine."""

    def __init__(self, stage: Stage, machine: Machine) -> None:
        name = f"m{machine.number}.{machine.lives}"
        self.process = Process(name)
        self.process.machine = machine
        stage.processes.append(self.process)
        self.process.pid = len(stage.processes)
        self.process.host = "host" if stage.one_host else f"host {machine.number}"
        self.owner = Owner(stage.site, self.process)
        self.undisturbed = True  # neither killed nor paused, nor cut off alone
        self.leases: list[int] = []  # ids of its controllers
        self.writes = False  # whether it may, under the last of them
        self.process.life = self
        self._stage, self._machine, self._world = stage, machine, stage.world
        self._leaving = False
        self._others: list[Actor] = []
        stage.lives.append(self)
        self._main = self._world.spawn(self.process, name, self._live)
        self.owner.wake = lambda: self._world.wake(self._main)

    def _live(self) -> None:
        try:
            how = self._run()
        except StudyNotFound:
            if not self._stage.deleted and self._stage.name == NAME:
                raise
            how = "deleted" if self._stage.deleted else "renamed"
        except LeaseHeld:
            how = "held"
        except LEDGER_ERRORS as error:
            if not (is_away(error) or self._stage.deleted):
                raise
            how = "away"
        self._machine.ended(self, how)

    def _run(self) -> str:
        self.ledger = ledger = self._stage.database.ledger()
        ledger.study(self._stage.name)
        while True:
            self.writes = False
            name = self._stage.name
            lease = self._acquire(ledger)
            self.writes = True
            record = ledger.study(name)
            self.leases.append(lease.controller_id)
            self._world.note(f"has lease {lease.controller_id}")
            try:
                broken = self._under(ledger, record, lease)
            finally:
                if not self.process.dead:
                    self._release(ledger, lease)
            if broken is not None:
                return broken

    def _acquire(self, ledger: Ledger) -> Lease:
        stage = self._stage
        watched: dict[int, float] = {}
        began = self._world.now
        while True:
            trials = stage.trials
            dead = watched if self._world.now - began >= LEASE_SECONDS else {}
            try:
                lease = ledger.acquire(stage.record, trials=trials, join=stage.joins, watched=dead)
            except LeaseHeld as error:
                if watched != error.leases:
                    watched, began = error.leases, self._world.now
                self._world.wait(max(1.0, min(error.expires_in, 8.0)))
            else:
                if stage.trials == trials:
                    stage.trials = None
                return lease

    @staticmethod
    def _release(ledger: Ledger, lease: Lease) -> None:
        try:
            ledger.release(lease)
        except LEDGER_ERRORS as error:
            if not is_away(error):
                raise

    def _under(self, ledger: Ledger, record: StudyRecord, lease: Lease) -> str | None:
        """Run one controller to its end; None if its lease was lost."""
        stage = self._stage
        explore = stage.explore if stage.config.schedule else None
        controller = Controller(
            ledger, record, stage.config, lease, RUNS, observers=(), explore=explore
        )
        controller._lock = Lock(self._world, "controller")  # type: ignore[assignment]
        if not controller.look_for_end():
            self._leaving = False
            self.owner.running.clear()
            self.owner.inbox.clear()
            self.owner._stops = False
            heart = self._spawn("heart", lambda: self._beat(ledger, lease, controller))
            guard = self._spawn("guard", lambda: self._watch(controller))
            self._others = [heart, guard]
            self._dispatch(controller)
            self._join()
        broken = controller.broken
        if isinstance(broken, LeaseLost):
            return None
        if broken is not None:
            known = isinstance(broken, DiskAway) or is_away(broken)
            if not known and not self._stage.deleted:
                raise broken
            return "broken"
        if controller.stopping:
            return "stopped"
        return "failing" if controller.failing else "done"

    def _spawn(self, what: str, work: Any) -> Actor:
        def play() -> None:
            work()
            self._world.wake(self._main)

        return self._world.spawn(self.process, f"{self.process.name}-{what}", play)

    def _beat(self, ledger: Ledger, lease: Lease, controller: Controller) -> None:
        pause: float | None = lease.seconds / 3
        while pause is not None:
            self._world.wait(pause)
            if self._leaving:
                return
            pause = ledger.beat(lease, controller.report_error)

    def _watch(self, controller: Controller) -> None:
        guard = Guard(controller, _Board(), exits=True)  # type: ignore[arg-type]
        while not self._leaving:
            self._world.wait(self._stage.random.uniform(0.5, 1.0) * POLL_SECONDS)
            if not self._leaving:
                with contextlib.suppress(*LEDGER_ERRORS):  # the next look must still come
                    guard.look(self.owner)

    def _join(self) -> None:
        self._leaving = True
        for actor in self._others:
            self._world.wake(actor)
        while not all(actor.done for actor in self._others):
            self._world.wait(0.1)

    def _dispatch(self, controller: Controller) -> None:
        """What Tune does with its two adapters (hpo/workers/dispatch.py)."""
        owner, finished = self.owner, False
        most = controller.config.resources.concurrent_trials
        while True:
            while owner.inbox:
                gang, message = owner.inbox.popleft()
                self._pass_on(controller, gang, message)
            if not finished and len(owner.running) < most:
                attempt = controller.next()
                if attempt is not None:
                    self._world.note(
                        f"begins {attempt.assignment.label}, attempt {attempt.assignment.attempt}"
                    )
                    owner.begin(attempt.assignment)
                    continue
                finished = controller.look_for_end()
            if owner.inbox:
                continue
            if finished and not owner.running:
                return
            self._world.wait(POLL_SECONDS if not finished else None)

    def _pass_on(self, controller: Controller, gang: Gang, message: Any) -> None:
        job, attempt = gang.assignment.job, gang.assignment.attempt
        if message.kind == "evaluated" and gang.alive:
            if controller.handle(job, attempt, message):
                gang.go_on()
                return
            controller.handle(job, attempt, message)  # Tune says it again once it has stopped it
        else:
            controller.handle(job, attempt, message)
        self.owner.forget(gang)


class _Board:
    """A live view that nobody looks at."""

    def say(self, text: str) -> None:
        pass

    def recall(self, study: optuna.Study) -> None:
        pass

    def progress(self, progress: Any) -> None:
        pass
