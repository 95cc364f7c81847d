"""What a person sees while a study runs: one live view on a terminal, plain lines on a pipe.

It shows what the controller wrote; it neither asks the ledger nor decides anything.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo.control.messages import Job, RankProgress
from hpo.search.constraints import Constraint, violations
from hpo.search.objectives import Objective
from hpo.search.ranking import feasible, sign
from storage import TeacherRecord, TeacherState

WIDE = 72  # columns; from this width on there is room for bars
NARROW = 48  # columns; below this width there is no room for attempts and losses


@dataclass
class RunningTrial:
    """A trial in the live view, or a teacher, which has no value."""

    label: str
    attempt: int
    steps: int
    step: int = 0
    value: float | None = None  # the last reported value of the first objective
    loss: float | None = None  # of the last step, in nats per token
    note: str | None = None  # the last message of its run
    feasible: bool = True  # by its last report


@dataclass
class Board:
    """An observer of the controller that draws a study."""

    console: Console
    study: str
    objective: Objective
    budget: int
    constraints: Sequence[Constraint] = ()
    again: str = ""  # what a person types to go on
    finished: dict[str, int] = field(default_factory=dict)  # trials by state
    best: tuple[int, float] | None = None  # trial and value
    note: str = ""
    running: dict[Job, RunningTrial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began_at = time.monotonic()
        self._finished_here = 0
        self._width = self.console.width

    def begin(
        self, trial: int, attempt: int, config: Mapping[str, Any], params: Mapping[str, Any]
    ) -> None:
        self.running[trial] = RunningTrial(f"trial {trial}", attempt, config["steps"])
        self._line(f"trial {trial} starts" + (f", attempt {attempt}" if attempt > 1 else ""))

    def report(self, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        shown = self.running[trial]
        shown.step, shown.value = step, metrics.get(self.objective.metric)
        found = violations(self.constraints, metrics, out_of_memory=False)
        shown.feasible = all(violation <= 0 for violation in found)
        value = "" if shown.value is None else f" {self._metric(shown.value)}"
        self._line(f"trial {trial} step {step}/{shown.steps}{value}")

    def end(self, trial: int, state: str, reason: str | None) -> None:
        shown = self.running.pop(trial, RunningTrial("", 0, 0))  # a parked trial is not running
        why = f" ({reason})" if reason else ""
        if state == "RUNNING":
            self._line(f"trial {trial} to be continued{why}")
            return
        self.finished[state] = self.finished.get(state, 0) + 1
        self._finished_here += 1
        value = "" if shown.value is None else f" {self._metric(shown.value)}"
        better = ""
        if state == "COMPLETE" and not shown.feasible:
            better = ", infeasible"
        elif state == "COMPLETE" and shown.value is not None and self._improves(shown.value):
            better = ", the best so far"
            self.best = trial, shown.value
        self._line(f"trial {trial} {state}{why}{value}{better}")

    def teacher(self, teacher: TeacherRecord) -> None:
        name, shown = f"teacher {teacher.key}", self.running.pop(teacher.key, None)
        if teacher.state is TeacherState.TRAINING:
            self.running[teacher.key] = RunningTrial(
                name, teacher.attempts, teacher.steps, teacher.step
            )
            where = f"step {teacher.step}/{teacher.steps}"
            self._line(f"{name} {where}" if shown else f"{name} starts, attempt {teacher.attempts}")
        elif teacher.state is TeacherState.WAITING and teacher.reason is None:
            self._line(f"{name} is being trained by another process: waiting for it")
        else:
            self._line(
                f"{name} {teacher.state}" + (f" ({teacher.reason})" if teacher.reason else "")
            )

    def recall(self, study: optuna.Study) -> None:
        """Show what all controllers of the study have done, earlier ones included."""
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        self.finished = dict(Counter(trial.state.name for trial in trials))
        for trial in feasible(trials):
            if self._improves(trial.values[0]):
                self.best = trial.number, trial.values[0]

    def progress(self, found: Mapping[Job, RankProgress]) -> None:
        """Show the steps made between evaluations, and the messages of runs."""
        for job, progress in found.items():
            shown = self.running.get(job)  # the main thread may end it meanwhile
            if shown is None:
                continue
            if progress.step >= shown.step:
                shown.step, shown.loss = progress.step, progress.loss
            if progress.note not in (None, shown.note):
                shown.note = progress.note
                self._line(f"{shown.label}: {progress.note}")

    def say(self, text: str) -> None:
        """Show a note to the person, and keep it in view."""
        self.note = text
        self._line(text)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the view while the block runs, on a terminal; elsewhere the lines say it all."""
        if not self.console.is_interactive:
            yield
            return
        with Live(
            console=self.console,
            get_renderable=self._frame,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield
            self.note = ""  # the last picture stays on the terminal, and shows how things stand

    def give_up(self) -> None:
        """Leave the terminal usable. A signal handler may call this, so it waits for nothing."""
        show_cursor = "\r\n\x1b[?25h" if self.console.is_interactive else ""
        last = (
            f"{show_cursor}left at once; {self.again or f'go on with: hpo resume {self.study}'}\n"
        )
        os.write(self.console.file.fileno(), last.encode())

    def _frame(self) -> RenderableType:
        # A terminal that became narrower has wrapped the lines that the next picture goes over.
        if self.console.width < self._width:
            self.console.clear()
        self._width = self.console.width
        return self.render()

    def render(self) -> RenderableType:
        """Return the whole view."""
        done = sum(self.finished.values())
        head = Table.grid(padding=(0, 1), expand=False)
        name = Text(self.study, style="bold", no_wrap=True, overflow="ellipsis")
        head.add_row(name, *self._bar(done, self.budget), f"{done}/{self.budget} trials")
        parts: list[RenderableType] = [head]
        states = ", ".join(f"{count} {state.lower()}" for state, count in self.finished.items())
        if states:
            parts.append(Text(", ".join(filter(None, (states, self._time_left()))), "dim"))
        if self.running:
            parts.append(self._running_table())
        running = list(self.running.values())
        parts += [Text(f"{trial.label}: {trial.note}", "dim") for trial in running if trial.note]
        if self.best is not None:
            parts.append(Text(f"best  trial {self.best[0]}  {self._metric(self.best[1])}", "green"))
        if self.note:
            parts.append(Text(self.note, "yellow"))
        return Group(*parts)

    def _running_table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        bar = [""] * len(self._bar(0, 1))
        roomy = self.console.width >= NARROW
        attempt, loss = (["attempt"], ["loss"]) if roomy else ([], [])
        for column in ("", *attempt, "step", *bar, *loss, self.objective.metric):
            justify: Literal["left", "right"] = "left" if column == "" else "right"
            table.add_column(column, justify=justify, no_wrap=True)
        for trial in list(self.running.values()):
            begun = trial.step > 0 or trial.loss is not None
            table.add_row(
                trial.label,
                *(str(trial.attempt) for _ in attempt),
                f"{trial.step}/{trial.steps}" if begun else "starting",
                *self._bar(trial.step, trial.steps),
                *("" if trial.loss is None else f"{trial.loss:.3f}" for _ in loss),
                "" if trial.value is None else f"{trial.value:.2f}",
            )
        return table

    def _bar(self, done: int, total: int) -> list[RenderableType]:
        """Return a bar if there is room for one: terminals are resized while a study runs."""
        if self.console.width < WIDE:
            return []
        return [ProgressBar(total=total, completed=done, width=self.console.width // 4)]

    def _time_left(self) -> str:
        left = self.budget - sum(self.finished.values())
        if not self._finished_here or not self.running or left <= 0:
            return ""
        seconds = (time.monotonic() - self._began_at) / self._finished_here * left
        return f"about {_duration(seconds)} left"

    def _improves(self, value: float) -> bool:
        if self.best is None:
            return True
        better = sign(self.objective.direction)
        return better * value < better * self.best[1]

    def _metric(self, value: float) -> str:
        return f"{self.objective.metric} {value:.6g}"

    def _line(self, text: str) -> None:
        if not self.console.is_interactive:
            self.console.print(
                f"{self.study}: {text}", markup=False, highlight=False, soft_wrap=True
            )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
