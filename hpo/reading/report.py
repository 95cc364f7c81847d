"""A study on one HTML page that opens without a network: how it stands, its figures, its file.

The page is made from the ledger. Text from there is escaped by the template (`report.html`), and by
`figures.py` where Plotly shows it. The page's security policy forbids it to load anything.
"""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from hpo.control.messages import last_line
from hpo.reading import figures, views
from storage import Attempt, Ledger
from trainer.config.settings import kept_document

EDGE = 0.02  # of a dimension's range
MANY = 0.25  # of the best trials: a Pareto front always has some at an edge
MOST_ROWS = 20  # of a table
NO_FAILURES = {"finished", "running", "pruned", "parked", "exploited", "stopped"}
LIBRARIES = ("layerdrop-hpo", "optuna", "ray", "torch", "deepspeed", "plotly")


@dataclass(frozen=True)
class PageSection:
    """A heading, a note about what is below it, and figures as HTML."""

    title: str
    says: str
    figures: tuple[str, ...] = ()


@dataclass
class _PageData:
    """What the page says of a study, read from the ledger once. `trials` are in order of number."""

    ledger: Ledger
    name: str

    def __post_init__(self) -> None:
        self.record = self.ledger.study(self.name)
        self.document: dict[str, Any] = kept_document(self.record.document, f"study {self.name}")
        self.metrics = [objective["metric"] for objective in self.document["objectives"]]
        self.directions = [objective["direction"] for objective in self.document["objectives"]]
        # The order matters while a study runs: what is read later knows all that was read before.
        self.best = views.best_trials(self.ledger, self.name)
        of_trials = self.ledger.attempts(self.record)
        self.trials = self.ledger.trials(self.record, *TrialState)
        self.controllers = {c.controller_id: c for c in self.ledger.controllers(self.record)}
        self.numbers = {trial._trial_id: trial.number for trial in self.trials}
        self.attempts = sorted(
            (a for attempts in of_trials.values() for a in attempts), key=lambda a: a.started_at
        )

    def end(self, attempt: Attempt) -> float:
        """Return when the attempt ended or, if it has not, when its controller was last seen."""
        return attempt.ended_at or self.controllers[attempt.controller_id].seen_at

    def curves(self, metric: str) -> dict[int, dict[int, float]]:
        """Return the values of a metric by trial number and optimizer step."""
        both = [
            self.ledger.curves(self.record.study_id, metric, finished=finished)
            for finished in (True, False)
        ]
        curves = {self.numbers[i]: c for part in both for i, c in part.items() if i in self.numbers}
        return dict(sorted(curves.items()))


def page(ledger: Ledger, name: str) -> str:
    """Return the page as HTML. Raises StudyNotFound."""
    study = _PageData(ledger, name)
    best_trials = [study.trials[best["trial"]] for best in study.best]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html").render(
        name=name,
        status=views.study_status(ledger, name),
        study=study.document,
        metrics=study.metrics,
        best=study.best[:MOST_ROWS],
        best_count=len(study.best),
        warnings=at_edges(best_trials),
        sections=list(_sections(study, [trial.number for trial in best_trials])),
        failures=_failures(study)[:MOST_ROWS],
        failure_count=len(_failures(study)),
        cost=_cost(study),
        document=study.record.document,
        program=_program(),
        plotly=get_plotlyjs(),
    )


def at_edges(best: Sequence[FrozenTrial]) -> list[str]:
    """Return a sentence for each end of a dimension at which the best trial, or many, lie."""
    found: dict[tuple[str, str, float], list[FrozenTrial]] = defaultdict(list)
    for trial in best:
        for path, value in trial.params.items():
            dimension = trial.distributions[path]
            if path == "seed":
                continue  # a larger seed is not better
            if isinstance(dimension, (FloatDistribution, IntDistribution)):
                where = _position(value, dimension)
                if where <= EDGE:
                    found[path, "lower", dimension.low].append(trial)
                elif where >= 1 - EDGE:
                    found[path, "upper", dimension.high].append(trial)
    return [
        f"{path} is {', '.join(f'{t.params[path]:.6g}' for t in trials[:3])}"
        f"{', …' if len(trials) > 3 else ''} in {_share(len(trials), len(best))}, at the {side} "
        f"end of its space ({bound:g}): a better value may lie beyond it"
        for (path, side, bound), trials in found.items()
        if len(trials) >= MANY * len(best)
    ]


def _share(some: int, best: int) -> str:
    return f"{some} of {best} best trials" if best > 1 else "the best trial"


def _position(value: float, dimension: FloatDistribution | IntDistribution) -> float:
    """Return where a value lies in its range, from 0 to 1, by logarithms if `dimension.log`."""
    scale = math.log if dimension.log else float
    low, high = scale(dimension.low), scale(dimension.high)
    return (scale(value) - low) / (high - low) if high > low else 0.5


def _sections(study: _PageData, best: Sequence[int]) -> Iterator[PageSection]:
    for position, metric in enumerate(study.metrics):
        yield from _of_objective(study, position, metric)
    for position, metric in enumerate(study.metrics):
        ranked = figures.ranking(study.trials, position, study.directions[position])
        yield _learning_curves(study.curves(metric), ranked, metric)
    if len(study.metrics) > 1:
        everything = figures.to_draw(study.trials, study.directions, lambda trial: trial.values)
        yield _section("Pareto front", "", lambda: figures.pareto_front(everything, study.metrics))
    fronts = {n: study.ledger.depth_front(study.trials[n]._trial_id) for n in best[:5]}
    if any(fronts.values()):
        says = "Sub-models of the best trials, without retraining."
        yield _section("Depth front", says, lambda: figures.depth_front(fronts))
    yield _time_line(study)


def _of_objective(study: _PageData, position: int, metric: str) -> Iterator[PageSection]:
    direction = study.directions[position]

    def draw(most: int | None) -> Any:
        keep = None if most is None else figures.thinned(ranked, most)
        return figures.to_draw(study.trials, [direction], lambda t: [t.values[position]], keep)

    ranked = figures.ranking(study.trials, position, direction)
    if not ranked:
        yield PageSection(metric, f"No trial is complete with a finite {metric} yet.")
        return
    everything, lines, points = draw(None), draw(figures.MOST_LINES), draw(figures.MOST_POINTS)
    yield _section(
        f"{metric}: history", "Of complete trials.", lambda: figures.history(everything, metric)
    )
    yield _section(
        f"{metric}: parameter importances",
        "By PED-ANOVA: what tells the better trials from all.",
        lambda: figures.importances(everything, metric),
    )
    yield _section(
        f"{metric}: parallel coordinates",
        _thinned(len(ranked), figures.MOST_LINES),
        lambda: figures.parallel(lines, metric),
    )
    yield _section(
        f"{metric}: slices",
        _thinned(len(ranked), figures.MOST_POINTS),
        lambda: figures.slices(points, metric),
    )


def _learning_curves(
    curves: dict[int, dict[int, float]], ranked: Sequence[int], metric: str
) -> PageSection:
    title = f"{metric}: learning curves"
    if not curves:
        return PageSection(title, f"No trial has reported {metric} yet.")
    by_end = sorted(curves.keys() - set(ranked))
    chosen = figures.thinned([*(n for n in ranked if n in curves), *by_end], figures.MOST_LINES)
    shown = {number: curve for number, curve in curves.items() if number in chosen}
    says = f"The best {figures.BEST} in colour; pruned and unfinished ones are faint. "
    return _section(
        title,
        says + _thinned(len(curves), figures.MOST_LINES),
        lambda: figures.learning_curves(shown, ranked, metric),
    )


def _time_line(study: _PageData) -> PageSection:
    newest = study.attempts[-figures.MOST_BARS :]
    if not newest:
        return PageSection("Time line", "Nothing has been trained yet.")
    bars = [
        figures.Bar(
            str(study.controllers[attempt.controller_id]),
            _reason(attempt),
            attempt.started_at,
            study.end(attempt),
            f"trial {study.numbers[attempt.trial_id]}, attempt {attempt.number}: "
            f"{_reason(attempt)} {last_line(attempt.detail)}",
        )
        for attempt in newest
    ]
    left_out = len(study.attempts) - len(newest)
    says = f" The newest {len(newest)}; {left_out} earlier ones are left out." if left_out else ""
    return _section(
        "Time line",
        f"A bar is an attempt, a row a place to train under a controller.{says}",
        lambda: figures.time_line(bars),
    )


def _section(
    title: str, says: str, draw: Callable[[], go.Figure | Iterator[go.Figure]]
) -> PageSection:
    """Return a section with the figures of `draw`, or with the reason why it cannot draw them."""
    try:
        drawn = draw()
        parts = [drawn] if isinstance(drawn, go.Figure) else list(drawn)
    except (ValueError, RuntimeError) as error:
        return PageSection(title, f"Left out: {error}.")
    return PageSection(title, says, tuple(map(figures.as_html, parts)))


def _thinned(have: int, most: int) -> str:
    if have <= most:
        return ""
    return f"Of {have} trials the best {figures.BEST} and a sample of the others, {most} in all."


def _reason(attempt: Attempt) -> str:
    if attempt.ended_at is None:
        return "running"
    return attempt.reason.value if attempt.reason else "finished"


def _failures(study: _PageData) -> list[Mapping[str, Any]]:
    """Return the attempts that went wrong, the newest first."""
    return [
        {
            "trial": study.numbers[attempt.trial_id],
            "attempt": attempt.number,
            "reason": _reason(attempt),
            "controller": study.controllers[attempt.controller_id],
            "detail": last_line(attempt.detail),
        }
        for attempt in reversed(study.attempts)
        if _reason(attempt) not in NO_FAILURES
    ]


def _cost(study: _PageData) -> list[Mapping[str, Any]]:
    """Return attempts and device-seconds by reason, the most expensive reason first."""
    rows: dict[str, dict[str, Any]] = {}
    for attempt in study.attempts:
        row = rows.setdefault(_reason(attempt), {"attempts": 0, "device_seconds": 0.0})
        row["attempts"] += 1
        row["device_seconds"] += (study.end(attempt) - attempt.started_at) * attempt.devices
    return sorted(
        ({"reason": reason, **row} for reason, row in rows.items()),
        key=lambda row: -row["device_seconds"],
    )


def _program() -> dict[str, str]:
    """Return the versions of what made the page, and the git commit if it runs from a clone."""
    found = {"python": platform.python_version()}
    found |= {library: version(library) for library in LIBRARIES}
    root, git = Path(__file__).parents[2], shutil.which("git")
    if git and (root / ".git").exists():
        command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
        found["git commit"] = told.stdout.strip() or "unknown"
    return found
