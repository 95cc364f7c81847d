"""A study under random faults, on SQLite and on PostgreSQL: nothing is lost, and nothing is left.

    python -m benchmarks.chaos [sqlite|postgresql] [seed=N]

75 short trials on two ranks, first without faults, then by two controllers with the faults of
chaos_faults.py, where and when the seed says. Whenever fewer controllers live, `hpo resume` is
typed, as a person or a supervisor would. Every fault is a line when the study is past it, with
what the ledger says became of it; chaos_checks.py says what must be true at the end.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from optuna.trial import FrozenTrial

from benchmarks import tiny
from benchmarks.chaos_checks import Check, check, trials_of
from benchmarks.chaos_faults import FAULTS, possible
from benchmarks.chaos_scene import STUDY, Command, Look, Scene
from benchmarks.postgres import PostgresServer
from benchmarks.report import Result, report

TRIALS = 75
EACH = 8  # faults of each kind: 8 are of SQLite, 10 of PostgreSQL
GOAL = 60  # faults a side
CONTROLLERS = 2
BACKENDS = ("sqlite", "postgresql")
PAST_REPORTS = 3  # this many reports after a fault the study is past it
STUCK_SECONDS = 240.0  # without a report, nor a trial's end
RESUMES = 20  # typed in a row without either


def study(trials: int, seed: int, sampler: str = "random") -> dict[str, Any]:
    """The study file: trials of 1 to 3 s, one at a time at each controller.

    What TPE proposes to several controllers is not what it proposes to one.
    """
    return {
        **tiny.STUDY,
        "study": STUDY,
        "sampler": {"name": sampler, "seed": seed},
        "pruner": {"name": "asha", "min_steps": 80, "reduction_factor": 2},
        "budget": {"trials": trials},
        "failures": {"max_retries": 10, "hang_seconds": 30},
        "train": {**tiny.STUDY["train"], "steps": 160},
    }


@dataclass
class Due:
    """A fault, and when: so long after a trial's start, or after the fault before in its heels."""

    name: str
    trial: int
    seconds: float


def schedule(names: Sequence[str], trials: int, each: int, chance: Random) -> list[Due]:
    """Every fault `each` times, spread over the study; some of them hit while others are mended."""
    order = [name for name in names for _ in range(each)]
    chance.shuffle(order)
    # Not the last trials: a fault wants something to come after it.
    at = sorted(chance.choices(range(trials - 1), k=len(order)))
    return [Due(name, trial, chance.uniform(0, 3)) for name, trial in zip(order, at, strict=True)]


@dataclass
class Siege:
    """The faults that come, those that the study is not past yet, and the study's supervisor."""

    scene: Scene
    coming: list[Due]
    chance: Random
    began: float = field(default_factory=time.monotonic)
    pending: list[Due] = field(default_factory=list)  # the study is not past them
    done: int = 0
    resumed: int = 0  # since the last progress
    progress: int = -1
    progressed: float = field(default_factory=time.monotonic)
    before: Look | None = None  # the first pending fault
    after: Look | None = None  # the last one
    asked: Command | None = None  # to leave
    finished: bool = False
    reached: float | None = None  # when the next fault's trial was
    controllers: int = 1  # that shall run at a time

    def run(self) -> str | None:
        """Until the study is done; why it was given up, if it was."""
        while True:
            for command in self.scene.ended():
                self.say(f"`{command.words}` ended with {command.process.returncode}: "
                         f"{command.last_line}")  # fmt: skip
                self.finished = self.finished or command.process.returncode == 0
            if self.finished and not self.scene.commands:
                if look := self.scene.look():
                    self.past(look)
                return None
            while len(self.scene.commands) < self.controllers and not self.finished:
                self.resumed += 1
                self.scene.resume()
            self.thin_out()
            look = self.scene.look()
            if look is not None:
                self.follow(look)
            idle = time.monotonic() - self.progressed
            if self.resumed > RESUMES or idle > STUCK_SECONDS:
                return f"no progress for {idle:.0f} s and {self.resumed} resumes"
            time.sleep(0.1)

    def thin_out(self) -> None:
        """One more controller than there shall be is enough: the oldest is asked to leave."""
        oldest = self.scene.commands[0] if self.scene.commands else None
        if len(self.scene.commands) > self.controllers + 1 and oldest and oldest is not self.asked:
            self.asked = oldest
            self.say(f"asked process {self.asked.process.pid} to leave, one too many")
            self.asked.process.terminate()

    def follow(self, look: Look) -> None:
        """Do what is due at this state of the ledger."""
        if look.progress > self.progress:
            self.progress, self.progressed, self.resumed = look.progress, time.monotonic(), 0
        if self.after and look.progress >= self.after.progress + PAST_REPORTS:
            self.past(look)
        if self.is_due(look):
            self.strike(look)

    def is_due(self, look: Look) -> bool:
        """Whether the next fault is."""
        if not self.coming:
            return False
        due = self.coming[0]
        if max(look.trials, default=-1) < due.trial:
            return False
        if self.pending and self.pending[-1].trial != due.trial:
            return False  # it is shown first what became of those before
        self.reached = self.reached or time.monotonic()
        return time.monotonic() >= self.reached + due.seconds

    def strike(self, look: Look) -> None:
        """Do the next fault, if it can be done now."""
        due = self.coming[0]
        what = FAULTS[due.name](self.scene, self.chance)
        if what is None:
            return
        self.done += 1
        self.say(f"fault {self.done}, {due.name}, at trial {look.running}: {what}")
        self.pending.append(self.coming.pop(0))
        self.before = self.before or look
        self.after = self.scene.wait_for(self.scene.look, STUCK_SECONDS) or look
        self.progressed, self.reached = time.monotonic(), None

    def past(self, look: Look) -> None:
        """Say what became of the faults that the study is past."""
        seen = ", ".join(became(self.before, look)) if self.before else ""
        if self.pending:
            self.say(f"    became of it: {seen or 'waited out, the ledger has nothing of it'}")
        self.pending, self.before, self.after = [], None, None

    def say(self, line: str) -> None:
        """Print a line with the seconds so far."""
        print(f"{time.monotonic() - self.began:6.1f} s  {line}", flush=True)


def became(before: Look, after: Look) -> Iterator[str]:
    """What the ledger has of the time between two looks: lost and new controllers, attempts."""
    for key, (pid, state) in after.controllers.items():
        if key not in before.controllers:
            yield f"controller {key} (process {pid}) took over"
        elif state != before.controllers[key][1]:
            yield f"controller {key} {state}"
    for key, attempt in after.attempts.items():
        name = f"trial {attempt.trial} attempt {attempt.number}"
        was = before.attempts.get(key)
        if was is None and attempt.number > 1:
            yield f"{name} from step {attempt.first_step}"
        if attempt.reason not in (None, "pruned") and (was is None or not was.ended):
            yield f"{name} {attempt.reason} at step {attempt.last_step}"


def main() -> None:
    """Attack the study on each backend that was named, or on both."""
    backends, seed = _arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started must not outlive this
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for backend in backends:
            print(f"{backend}, seed {seed}: {TRIALS} trials, first without faults", flush=True)
            results += attack(backend, Path(folder, backend), seed)
    report("chaos", results)
    sys.exit(0 if all(result.met is not False for result in results) else 1)


def without_faults(folder: Path, config: dict[str, Any]) -> list[FrozenTrial]:
    """The trials of the study that nobody disturbs."""
    scene = Scene(folder)
    try:
        command = scene.start(config)
        assert command.process.wait() == 0, command.log.read_text()
        return trials_of(scene)
    finally:
        scene.clear()


def attack(backend: str, folder: Path, seed: int) -> list[Result]:
    """The study under faults, and what is left of the promises."""
    with ExitStack() as undo:
        folder.mkdir()
        config = study(TRIALS, seed)
        undisturbed = without_faults(folder / "undisturbed", config)
        server = None
        if backend == "postgresql":
            (folder / "server").mkdir()
            server = PostgresServer(folder / "server")
            server.start()
            undo.callback(server.stop)
        scene = Scene(folder / "scene", server)
        undo.enter_context(scene.small_disk())
        undo.callback(scene.clear)
        chance = Random(f"{seed} {backend}")
        coming = schedule(possible(scene), TRIALS, EACH, chance)
        siege = Siege(scene, coming, chance, controllers=CONTROLLERS)
        scene.start(config)
        scene.wait_for(scene.active, STUCK_SECONDS)
        scene.open_dashboard()
        gave_up = siege.run()
        seconds = time.monotonic() - siege.began
        scene.close_dashboard()
        checks = check(scene, config, undisturbed)
    checks.append(Check("study done", [gave_up] if gave_up else []))
    for each in checks:
        for line in each.broken:
            print(f"broken: {each.promise}: {line}", flush=True)
    return [
        Result(f"{backend} seconds", seconds, "s"),
        Result(f"{backend} faults", siege.done, "faults", str(GOAL), siege.done >= GOAL),
        *(Result(f"{backend} {each.promise}", len(each.broken), "broken", "0", not each.broken)
          for each in checks),
    ]  # fmt: skip


def _arguments(given: Sequence[str]) -> tuple[Sequence[str], int]:
    seeds = [word.removeprefix("seed=") for word in given if word.startswith("seed=")]
    backends = [word for word in given if word in BACKENDS]
    if len(seeds) + len(backends) < len(given) or not all(seed.isdigit() for seed in seeds):
        sys.exit("python -m benchmarks.chaos [sqlite|postgresql] [seed=N]")
    return backends or BACKENDS, int(seeds[-1]) if seeds else 0


if __name__ == "__main__":
    main()
