"""Simulated gangs, the folders that they write, and the disk under these.

A gang is no actor: it does not know the database. It is a chain of events, which speaks to its
process as Tune would, and which may outlive it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hpo.control.assignment import Assignment
from hpo.control.messages import Job, Kind, Message, RankProgress
from tests.simulation.world import Process, Violation, World

Metrics = dict[str, float]


@dataclass
class Folder:
    """A run's folder: it outlives every process."""

    lines: dict[int, Metrics] = field(default_factory=dict)  # metrics.jsonl
    checkpoints: list[int] = field(default_factory=list)  # whole ones that are kept
    measured: set[int] = field(default_factory=set)  # steps that have ever been checkpointed
    holder: Gang | None = None  # of the lock
    done: bool = False
    attempts: int = 0  # that began to train in it


class Site:
    """What gangs share: folders, the disk, and what trainings come to."""

    def __init__(self, world: World, seed: str, *, kept: int, noisy: bool, depths: bool) -> None:
        """`kept` checkpoints; `noisy` trainings measure something else the next time."""
        self.world = world
        self.random = Random(f"{seed}-gangs")
        self.folders: dict[str, Folder] = {}
        self.gangs: list[Gang] = []  # that live
        self.full_until = 0.0  # the disk is
        self.pace = self.random.choice([1.0, 1.0, 4.0, 8.0])  # a larger one is slower
        self._seed, self._kept, self._noisy, self._depths = seed, kept, noisy, depths

    def folder(self, path: str) -> Folder:
        """The folder at `path`, which is made if need be."""
        return self.folders.setdefault(path, Folder())

    @property
    def full(self) -> bool:
        return self.world.now < self.full_until

    def fate(self, path: str) -> tuple[Kind, int] | None:
        """How a training ends before its last step, by itself, and at which step."""
        random = Random(f"{self._seed}-fate-{path}")
        kinds: list[Kind] = ["diverged", "out_of_memory", "error"]
        if random.random() > 0.15:
            return None
        return random.choice(kinds), random.choice([50, 150, 250])

    def metrics(self, document: dict[str, Any], step: int, attempt: int) -> Metrics:
        """What a training measures, which follows from its config alone, unless it is noisy."""
        optim, seed = document["optim"], document["seed"]
        noise = attempt * 1e-3 if self._noisy else 0.0
        value = 3.0 + 300.0 * optim["lr"] + 100.0 / step + seed % 7 * 0.01 + noise
        return {"valid_ppl": value, "step_seconds": 0.1 + optim["lr"]}

    def depth_front(self, step: int) -> list[dict[str, Any]]:
        """The depth front at `step`, in a study that measures one."""
        if not self._depths:
            return []
        return [
            {
                "depth": depth,
                "search": "every_other",
                "layers": list(range(1, depth + 1)),
                "valid_ppl": 9.0 - depth + 100.0 / step,
                "parameters": 1000 * depth,
                "seconds_per_token": 1e-6 * depth,
            }
            for depth in (1, 2)
        ]

    def keep(self, folder: Folder, step: int) -> None:
        """Write a checkpoint, and remove the oldest."""
        if step not in folder.checkpoints:
            folder.checkpoints.append(step)
        folder.measured.add(step)
        folder.checkpoints[: -self._kept] = []


class Gang:
    """The ranks of one attempt."""

    def __init__(self, site: Site, owner: Owner, assignment: Assignment) -> None:
        self.assignment = assignment
        self.alive = True
        self._site, self._owner, self._world = site, owner, site.world
        self._path: str = assignment.document["output_dir"]
        self._folder = site.folder(self._path)
        self._stops = False
        self._hangs = False
        self._first_step: int | None = None
        self._step = 0
        self._backlog: deque[Message] = deque()
        site.gangs.append(self)
        self._in(self._site.random.uniform(0.1, 1.0), self._start)

    def __repr__(self) -> str:
        return f"gang of {self.assignment.label}, attempt {self.assignment.attempt}"

    def go_on(self) -> None:
        """Train to the next evaluation: what was said last is written."""
        if self._backlog:
            self._in(0.01, lambda: self._say(self._backlog.popleft()))
        else:
            self._in(self._site.pace * self._site.random.uniform(0.3, 2.5), self._evaluate)

    def request_stop(self) -> None:
        """Checkpoint and stop soon."""
        self._stops = True

    def free(self) -> None:
        """End: the lock is let go."""
        if self.alive:
            self.alive = False
            self._site.gangs.remove(self)
            if self._folder.holder is self:
                self._folder.holder = None

    def die(self, after: float = 0.5) -> None:
        """Lose a rank: the process hears of it a little later."""
        self.free()
        message = Message("worker_lost", detail="rank 1 died")
        self._world.at(after, lambda: self._owner.hear(self, message))

    def hang(self) -> None:
        """Make no progress any more, until the gang is killed for it."""
        self._hangs = True
        self._world.at(self.assignment.hang_seconds, lambda: self.die() if self.alive else None)

    def outlive(self, seconds: float) -> None:
        """The process is gone; the ranks live on for so long."""
        if seconds > 0:
            self._world.at(seconds, self.free)
        else:
            self.free()

    def _in(self, seconds: float, do: Any) -> None:
        def act() -> None:
            if self.alive and not self._hangs:
                do()

        self._world.at(seconds, act)

    def _say(self, message: Message) -> None:
        if message.kind != "evaluated":
            self.free()
        if self._owner.process.dead:
            if self.alive:
                self.go_on()  # nobody answers, and nobody stops it
            return
        self._owner.hear(self, message)

    def _end(self, kind: Kind, step: int = 0, metrics: Metrics | None = None) -> None:
        front = self._site.depth_front(step) if kind == "finished" else []
        message = Message(kind, step, metrics or {}, self._first_step, kind, front)
        self._say(message)

    def _start(self) -> None:
        site, folder, assignment = self._site, self._folder, self.assignment
        if self._stops:
            return self._end("stopped")
        if folder.holder is not None:
            return self._end("busy")
        if site.full:
            return self._end("disk")
        folder.holder = self
        folder.attempts += 1
        self._step = folder.checkpoints[-1] if folder.checkpoints else 0
        fork = assignment.document.get("fork")
        if not self._step and fork:
            parent = site.folder(fork["run"])
            if fork["step"] not in parent.checkpoints:
                text = f"{self}: {fork['run']} has {parent.checkpoints}, not step {fork['step']}"
                raise Violation("no checkpoint to fork", text)
            self._step = fork["step"]
            site.keep(folder, self._step)
        self._first_step = self._step
        folder.lines = {at: line for at, line in folder.lines.items() if at <= self._step}
        self._backlog.extend(
            Message("evaluated", at, line, self._first_step, depth_front=site.depth_front(at))
            for at, line in sorted(folder.lines.items())
            if assignment.reported_step < at < assignment.steps
        )
        return self.go_on()

    def _evaluate(self) -> None:
        site, folder = self._site, self._folder
        every = self.assignment.document["eval_every"]
        step = min((self._step // every + 1) * every, self.assignment.steps)
        if site.full:
            return self._end("disk", self._step)
        if self._stops:
            self._step = min(self._step + every // 3, self.assignment.steps)
            site.keep(folder, self._step)
            return self._end("stopped", self._step)
        fate = site.fate(self._path) if isinstance(self.assignment.job, int) else None
        if fate is not None and self._step <= fate[1] < step:
            return self._end(fate[0], fate[1])
        folder.lines[step] = site.metrics(self.assignment.document, step, folder.attempts)
        return self._in(site.random.uniform(0.0, 0.2), lambda: self._checkpoint(step))

    def _checkpoint(self, step: int) -> None:
        site, folder = self._site, self._folder
        if site.full:
            return self._end("disk", self._step)
        self._step = step
        site.keep(folder, step)
        return self._in(site.random.uniform(0.0, 0.1), lambda: self._report(step))

    def _report(self, step: int) -> None:
        line = self._folder.lines[step]
        if step >= self.assignment.steps:
            self._folder.done = True
            return self._end("finished", step, line)
        front = self._site.depth_front(step)
        return self._say(Message("evaluated", step, line, self._first_step, depth_front=front))


class Owner:
    """The gangs of one controller's process, as its guard and its Tune know them."""

    def __init__(self, site: Site, process: Process) -> None:
        self.process = process
        self.running: dict[Job, Gang] = {}
        self.inbox: deque[tuple[Gang, Message]] = deque()
        self.wake: Any = lambda: None
        self._site = site
        self._stops = False

    def begin(self, assignment: Assignment) -> None:
        """Let a gang execute an attempt."""
        self.running[assignment.job] = gang = Gang(self._site, self, assignment)
        if self._stops:
            gang.request_stop()

    def hear(self, gang: Gang, message: Message) -> None:
        """Take what a gang says."""
        if not self.process.dead:
            self._site.world.note(f"{gang} says {message.kind} at {message.step}")
            self.inbox.append((gang, message))
            self.wake()

    def forget(self, gang: Gang) -> None:
        """The attempt is over."""
        gang.free()
        if self.running.get(gang.assignment.job) is gang:
            del self.running[gang.assignment.job]

    def kill_all(self) -> None:
        """As the module hpo.workers.gang does."""
        for gang in self._alive(self.running.values()):
            gang.die()

    def request_stop(self, jobs: Collection[Job] | None = None) -> None:
        """As the module hpo.workers.gang does."""
        self._stops = self._stops or jobs is None
        for job, gang in self.running.items():
            if jobs is None or job in jobs:
                gang.request_stop()

    def progress(self) -> dict[Job, RankProgress]:
        """As the module hpo.workers.gang does."""
        return {}

    @staticmethod
    def _alive(gangs: Iterable[Gang]) -> list[Gang]:
        return [gang for gang in gangs if gang.alive]
