"""A simulated clock: a search over a table of kept trainings, as if so many workers trained.

Trainings take the seconds that the table says; asking and telling takes none. Nothing is trained
here, and nothing here knows how a search decides.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from benchmarks.search_table import EVAL_EVERY, Point, Row


@dataclass
class Training:
    """One trial on its way."""

    number: int
    point: Point
    evaluations: int = 0  # done

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.evaluations * EVAL_EVERY


class Search(Protocol):
    """What proposes trainings, and is told how they go."""

    def next(self) -> Training:
        """What a free worker shall train: a new trial, or one that waited, from where it was."""

    def evaluated(self, training: Training, valid_ppl: float) -> bool:
        """Told of an evaluation before the last; whether the training goes on now."""

    def finished(self, training: Training, valid_ppl: float) -> None:
        """Told of the last evaluation."""

    def diverged(self, training: Training) -> None:
        """Told that there is nothing to go on from."""


Improvement = tuple[float, float]  # simulated seconds, valid_ppl of a finished training


def simulate(
    search: Search, table: Mapping[Point, Row], workers: int, budget_seconds: float
) -> list[Improvement]:
    """Each finished training that was better than all before, in the order of time.

    Ends early once nothing in the table is better: a perplexity counts only at the last step.
    """
    best_of_all = min(row.valid_ppl[-1] for row in table.values() if not row.diverged)
    improvements: list[Improvement] = []
    running: list[tuple[float, int, Training]] = []  # a heap by the end of the next evaluation
    order = itertools.count()

    def train_on(now: float, training: Training) -> None:
        seconds = table[training.point].seconds[training.evaluations]
        heapq.heappush(running, (now + seconds, next(order), training))

    for _ in range(workers):
        train_on(0.0, search.next())
    best = float("inf")
    while best > best_of_all:
        now, _, training = heapq.heappop(running)
        if now > budget_seconds:
            break
        goes_on, final = _tell(search, table[training.point], training)
        if final is not None and final < best:
            best = final
            improvements.append((now, final))
        train_on(now, training if goes_on else search.next())
    return improvements


def _tell(search: Search, row: Row, training: Training) -> tuple[bool, float | None]:
    # Whether the training goes on, and its final perplexity if it has one now.
    if training.evaluations == len(row.valid_ppl):
        search.diverged(training)
        return False, None
    value = row.valid_ppl[training.evaluations]
    training.evaluations += 1
    if row.diverged or training.evaluations < len(row.valid_ppl):
        return search.evaluated(training, value), None
    search.finished(training, value)
    return False, value
