"""The two sides of `ledger`: a controller, and plain Optuna, each in a process of its own.

They run trials that nobody trains: all the time is the ledger's. It measures how long each call
takes, and judges nothing.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Protocol

import optuna

from benchmarks.ledger_rows import LEVEL, grow
from hpo.control.attempts import TrialAttempt
from hpo.control.controller import Controller
from hpo.control.messages import Kind, Message
from hpo.search.space import suggest
from hpo.study.config import StudyConfig
from storage import Ledger
from trainer.config.train import TrainConfig

NAME = "big"
STEPS = range(100, 1001, 100)  # where each trial of a ledger has reported
PLAYED_STEPS = (500, 1000)  # where those do that are run here
CONCURRENT = 256


class Side(Protocol):
    """Runs one trial at a time."""

    def ask(self) -> None:
        """Have a trial with parameters."""

    def report(self, step: int, value: float) -> None:
        """Report, and ask whether the trial goes on, which it does."""

    def tell(self, value: float) -> None:
        """Report the last value, and end the trial."""

    def close(self) -> None:
        """Leave."""


class Ours:
    """The controller."""

    def __init__(self, url: str, pruner: str) -> None:
        self.ledger = Ledger.open(url)
        record = self.ledger.study(NAME)
        self._lease = self.ledger.acquire(record)
        self.controller = Controller(self.ledger, record, config(pruner), self._lease, "/runs")

    def ask(self) -> None:
        """Have a trial with parameters."""
        assignment = self.controller.next()
        assert isinstance(assignment, TrialAttempt)
        self._assignment = assignment

    def report(self, step: int, value: float) -> None:
        """Report, and ask whether the trial goes on, which it does."""
        assert say(self.controller, self._assignment, "evaluated", step, value)

    def tell(self, value: float) -> None:
        """Report the last value, and end the trial."""
        say(self.controller, self._assignment, "finished", STEPS[-1], value)
        assert not self.controller.running

    def close(self) -> None:
        """Leave."""
        self.ledger.release(self._lease)


class Plain:
    """Optuna alone."""

    def __init__(self, url: str, pruner: str) -> None:
        self._space = config(pruner).space
        self._study = optuna.load_study(
            study_name=NAME,
            storage=url.replace("postgresql:", "postgresql+psycopg:"),
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        self.prune_by(pruner)

    def prune_by(self, pruner: str) -> None:
        """Go on with another pruner."""
        median = optuna.pruners.MedianPruner()
        self._study.pruner = median if pruner == "median" else optuna.pruners.NopPruner()

    def ask(self) -> None:
        """Have a trial with parameters."""
        self._trial = self._study.ask()
        suggest(self._space, self._trial)

    def report(self, step: int, value: float) -> None:
        """Report, and ask whether the trial goes on, which it does."""
        self._trial.report(value, step)
        assert not self._trial.should_prune()

    def tell(self, value: float) -> None:
        """Report the last value, and end the trial."""
        self._trial.report(value, STEPS[-1])
        self._study.tell(self._trial, value)

    def close(self) -> None:
        """Leave."""


def config(pruner: str) -> StudyConfig:
    """The study."""
    return StudyConfig.model_validate(
        {
            "study": NAME,
            "sampler": {"name": "random", "seed": 0},
            "pruner": {"name": pruner},
            "budget": {"trials": 10**9},
            "resources": {"concurrent_trials": CONCURRENT},
            "train": TrainConfig(steps=STEPS[-1]).model_dump(mode="json"),
            "space": {
                "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2},
                "layerdrop.policy": {"type": "categorical", "choices": ["static", "linear"]},
                "layerdrop.p_init": {"type": "float", "low": 0.0, "high": 0.5},
            },
        }
    )


def say(controller: Controller, to: TrialAttempt, kind: Kind, step: int, value: float) -> bool:
    """Have an attempt say its metrics; whether it goes on."""
    metrics = {"valid_ppl": value, "step_seconds": 0.1}
    return controller.handle(to.number, to.attempt.number, Message(kind, step, metrics))


def fill(url: str, size: int) -> None:
    """Make a ledger at `url` with `size` finished trials."""
    study = config("none")
    ledger = Ledger.open(url, create=True)
    directions = [objective.optuna_direction for objective in study.objectives]
    ledger.create_study(NAME, directions, ["valid_ppl"], study.to_document(), study.budget.trials)
    first = Ours(url, "none")
    play(first, LEVEL, STEPS)
    first.close()
    for opened in (ledger, first.ledger):
        opened.engine.dispose()
    grow(url, size)


def play(side: Side, level: float, steps: Sequence[int] = PLAYED_STEPS) -> dict[str, float]:
    """Run one trial, whose values are `level` less its steps; the milliseconds of each call."""
    taken = {}

    def timed(what: str, call: Callable[[], None]) -> None:
        began = time.perf_counter()
        call()
        taken[what] = (time.perf_counter() - began) * 1e3

    timed("ask", side.ask)
    for step in steps[:-1]:
        timed("report", lambda step=step: side.report(step, level - step))  # type: ignore[misc]
    timed("tell", lambda: side.tell(level - steps[-1]))
    return taken


class Apart:
    """A side in a process of its own, from which only measurements come back."""

    def __init__(self, process: ProcessPoolExecutor) -> None:
        self._process = process

    def resume(self, kind: type[Ours] | type[Plain], url: str, pruner: str) -> tuple[float, float]:
        """Seconds from opening the database to the first suggestion, and peak memory in MiB."""
        return self._process.submit(_resume, kind, url, pruner).result()

    def play(self, level: float) -> dict[str, float]:
        """Run one trial, as `play` does."""
        return self._process.submit(_play, level).result()

    def prune_by(self, pruner: str) -> None:
        """Plain Optuna goes on with another pruner."""
        self._process.submit(_prune_by, pruner).result()


@contextmanager
def apart() -> Iterator[Apart]:
    """A process for a side; what it runs is closed in the end."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        yield Apart(process)
        process.submit(_close).result()


_side: Ours | Plain  # of this process


def _resume(kind: type[Ours] | type[Plain], url: str, pruner: str) -> tuple[float, float]:
    global _side
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    began = time.perf_counter()
    _side = kind(url, pruner)
    _side.ask()
    seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    _side.tell(LEVEL)
    return seconds, memory


def _play(level: float) -> dict[str, float]:
    return play(_side, level)


def _prune_by(pruner: str) -> None:
    assert isinstance(_side, Plain)
    _side.prune_by(pruner)


def _close() -> None:
    _side.close()
