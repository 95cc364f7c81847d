"""One schedule: a seed's scenario under a seed's faults, from first process to last check."""

from __future__ import annotations

import gc
import logging
import secrets
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import optuna

import hpo.clock
import storage.leases
from hpo.control import outage, teaching
from storage import StudyRecord
from tests.simulation import people
from tests.simulation.controllers import NAME, Machine, Stage
from tests.simulation.database import Database
from tests.simulation.faults import Fault, draw
from tests.simulation.gangs import Site
from tests.simulation.invariants import Invariants
from tests.simulation.scenarios import SCENARIOS, Scenario, exploit
from tests.simulation.world import Actor, Process, Violation, World

LONGEST = 40_000.0  # virtual seconds of a schedule


@dataclass
class Outcome:
    """What a schedule has come to."""

    seed: str
    scenario: str
    faults: Sequence[Fault]
    violation: Violation | None
    log: list[str]
    points: int
    seconds: float  # virtual


@dataclass
class Player:
    """Plays schedules, one after the other, on one database."""

    folder: Path
    only: str | None = None  # scenario
    _rows: dict[str, tuple[StudyRecord, dict[str, Any]]] = field(default_factory=dict)

    @cached_property
    def database(self) -> Database:
        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        return Database(self.folder)

    def first_violation(self, seeds: Iterable[int]) -> str | None:
        """Play the schedules of `seeds`; say what the first one that violates an invariant does."""
        for seed in seeds:
            if violation := self.play(str(seed)).violation:
                return f"python -m tests.simulation --seed {seed}: {violation}"
        return None

    def play(
        self, seed: str, faults: Sequence[Fault] | None = None, *, logs: bool = False
    ) -> Outcome:
        """Play the schedule of `seed`, perhaps with other faults than its own."""
        random = Random(f"{seed}-scenario")
        scenarios = [s for s in SCENARIOS if self.only in (None, s.name)]
        scenario = random.choice(scenarios)
        machines = min(random.choice([1, 2, 2, 3]), scenario.most_machines)
        restless = random.choice([0.02, 0.1, 0.3, 0.6])
        noisy = random.random() < 0.3
        budget = random.choice(scenario.budgets)
        record, rows = self._prepared(scenario)
        world = World(f"{seed}-world", restless=restless)
        world.tick = random.choice([0.0, 0.25, 1.0])
        world.log = [] if logs else None
        world.limit = world.now + LONGEST
        site = Site(world, seed, kept=scenario.kept, noisy=noisy, depths=scenario.depths)
        if faults is None:
            faults = draw(seed, machines, 6.0 + 5.0 * site.pace)
        random = Random(f"{seed}-stage")
        stage = Stage(
            world, self.database, site, scenario.config, record, exploit, scenario.joins, random
        )
        gc.collect(0)
        gc.disable()
        self.database.begin(world, rows, budget)
        stage.one_host = random.random() < 0.5
        with _in_place_of_this_machine(stage, logs=logs):
            _Play(stage, machines, faults, single=len(record_objectives(scenario)) == 1).run()
        self.database.end()
        gc.enable()
        seconds = world.now - (world.limit - LONGEST)
        return Outcome(
            seed, scenario.name, faults, world.violation, world.log or [], world.points, seconds
        )

    def _prepared(self, scenario: Scenario) -> tuple[StudyRecord, dict[str, Any]]:
        """The rows of a scenario's new study, which are made once."""
        if scenario.name not in self._rows:
            database, config = self.database, scenario.config
            database.begin(World("none"), {})
            record = database.ledger().create_study(
                NAME,
                [objective.optuna_direction for objective in config.objectives],
                [objective.metric for objective in config.objectives],
                config.to_document(),
                config.budget.trials,
                scenario.teachers,
                scenario.points,
            )
            self._rows[scenario.name] = record, database.rows()
            database.end()
        return self._rows[scenario.name]

    def shortest(self, outcome: Outcome) -> Outcome:
        """Leave out faults for as long as the schedule still fails in the same way."""
        assert outcome.violation is not None
        kind, faults = outcome.violation.kind, list(outcome.faults)
        again = True
        while again:
            again = False
            for left in range(len(faults)):
                fewer = faults[:left] + faults[left + 1 :]
                violation = self.play(outcome.seed, fewer).violation
                if violation is not None and violation.kind == kind:
                    faults, again = fewer, True
                    break
        return self.play(outcome.seed, faults, logs=True)


def record_objectives(scenario: Scenario) -> Sequence[Any]:
    """The objectives of a scenario's study."""
    return scenario.config.objectives


class _Play:
    """The faults and checks of one schedule."""

    def __init__(
        self, stage: Stage, machines: int, faults: Sequence[Fault], *, single: bool
    ) -> None:
        self._stage, self._faults = stage, faults
        self._world = stage.world
        self._invariants = Invariants(stage, single)
        self._at_points = {(f.machine, f.nth): f for f in faults if f.kind in _AT_POINT}
        self._at_commits = {(f.machine, f.nth): f for f in faults if f.kind in _AT_COMMIT}
        for number in range(machines):
            machine = Machine(stage, number)
            stage.machines.append(machine)
            self._world.at(stage.random.uniform(0.0, 5.0) * number, machine.begin)
        for fault in faults:
            if fault.kind in _AT_TIME:
                self._world.at(fault.at, self._befalls(fault))

    def run(self) -> None:
        """Play it to its end."""
        world, database = self._world, self._stage.database
        world.on_point = self._at_point if self._at_points else None
        database.commit_fault = self._at_commit
        database.on_commit = self._invariants.after_commit
        world.run()
        database.end()
        if world.violation is None:
            try:
                self._invariants.at_end()
            except Violation as violation:
                world.violation = violation

    def _at_point(self, actor: Actor, what: str) -> None:
        machine = actor.process.machine
        if machine is None:
            return
        machine.points += 1
        fault = self._at_points.get((machine.number, machine.points))
        if fault is not None:
            self._world.note(f"FAULT {fault}")
            _AT_POINT[fault.kind](self._stage, machine, fault)

    def _at_commit(self, actor: Actor) -> str | None:
        machine = actor.process.machine
        if machine is None:
            return None
        machine.commits += 1
        fault = self._at_commits.get((machine.number, machine.commits))
        if fault is None:
            return None
        self._world.note(f"FAULT {fault}")
        if fault.kind == "killed":
            machine.kill_after(actor.process, _outlives(fault))
        return fault.kind

    def _befalls(self, fault: Fault) -> Callable[[], None]:
        def strike() -> None:
            self._world.note(f"FAULT {fault}")
            _AT_TIME[fault.kind](self._stage, fault)

        return strike


def _outlives(fault: Fault) -> float:
    return fault.seconds if fault.seconds < 60.0 else 0.0


def _kill(stage: Stage, machine: Machine, fault: Fault) -> None:
    machine.kill(_outlives(fault))


def _pause(stage: Stage, machine: Machine, fault: Fault) -> None:
    if machine.life is not None:
        machine.life.undisturbed = False
        stage.world.pause(machine.life.process, fault.seconds)


def _slow(stage: Stage, machine: Machine, fault: Fault) -> None:
    current = stage.world.current
    assert current is not None
    stage.world.slow(current, min(fault.seconds, 4.0))


def _away(stage: Stage, fault: Fault) -> None:
    stage.database.go_away(fault.seconds, None)


def _cut_off(stage: Stage, fault: Fault) -> None:
    life = stage.machines[fault.machine].life
    if life is not None:
        life.undisturbed = False
        stage.database.go_away(fault.seconds, life.process)


def _jump(stage: Stage, fault: Fault) -> None:
    stage.database.ahead += fault.seconds


def _gang_dies(stage: Stage, fault: Fault) -> None:
    if gangs := stage.site.gangs:
        gangs[int(fault.pick * len(gangs))].die()


def _gang_hangs(stage: Stage, fault: Fault) -> None:
    if gangs := stage.site.gangs:
        gangs[int(fault.pick * len(gangs))].hang()


def _disk_full(stage: Stage, fault: Fault) -> None:
    stage.site.full_until = stage.world.now + fault.seconds


def _checkpoint_lost(stage: Stage, fault: Fault) -> None:
    folders = [f for f in stage.site.folders.values() if len(f.checkpoints) > 1]
    if folders and stage.config.schedule is None:  # children need their parents'
        del folders[int(fault.pick * len(folders))].checkpoints[-1]


def _another_machine(stage: Stage, fault: Fault) -> None:
    stage.another_machine()


_AT_POINT = {"kill": _kill, "pause": _pause, "slow": _slow}
_AT_COMMIT = ("refused", "lost", "killed")
_AT_TIME: dict[str, Callable[[Stage, Fault], None]] = {
    "away": _away,
    "cut off": _cut_off,
    "jump": _jump,
    "gang dies": _gang_dies,
    "gang hangs": _gang_hangs,
    "disk full": _disk_full,
    "checkpoint lost": _checkpoint_lost,
    "another machine": _another_machine,
    **dict.fromkeys(people.WISHES, people.come),
}


@contextmanager
def _in_place_of_this_machine(stage: Stage, *, logs: bool) -> Iterator[None]:
    """Have the product see the world's clock, disk, processes and random numbers."""
    world, site = stage.world, stage.site
    random = Random(f"{world.random.random()}-tokens")

    def check_disk(place: str) -> None:
        if site.full:
            raise OSError(28, "No space left on device")

    def is_trained(folder: str, steps: int) -> bool:
        return site.folder(folder).done

    def is_in_use(folder: str) -> bool:
        return site.folder(folder).holder is not None

    def token_hex(size: int) -> str:
        return f"{random.getrandbits(8 * size):0{2 * size}x}"

    def process() -> Process:
        assert world.current is not None
        return world.current.process

    def is_there(pid: int) -> bool:
        return any(one.pid == pid and not one.dead and not one.ended for one in stage.processes)

    with ExitStack() as stack:
        for owner, name, ours in (
            (hpo.clock, "source", lambda: world.now),
            (outage, "check_disk", check_disk),
            (teaching, "is_trained", is_trained),
            (teaching, "_is_in_use", is_in_use),
            (secrets, "token_hex", token_hex),
            (storage.leases, "os", SimpleNamespace(getpid=lambda: process().pid)),
            (storage.leases, "socket", SimpleNamespace(gethostname=lambda: process().host)),
            (storage.leases, "psutil", SimpleNamespace(pid_exists=is_there)),
            (uuid, "uuid4", lambda: uuid.UUID(token_hex(16))),
        ):
            stack.enter_context(mock.patch.object(owner, name, ours))
        stack.enter_context(_product_logs(world, shown=logs))
        yield


@contextmanager
def _product_logs(world: World, *, shown: bool) -> Iterator[None]:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            world.note(f"says: {record.getMessage()}")

    logger = logging.getLogger("hpo")
    before, handler = (logger.level, logger.propagate), Handler()
    logger.propagate = False
    logger.setLevel(logging.INFO if shown else logging.CRITICAL)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


@contextmanager
def player(only: str | None = None) -> Iterator[Player]:
    """A player with a folder in memory, if there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Player(Path(folder), only)
