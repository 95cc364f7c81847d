"""The report's figures: Optuna's own where it has them, with no more trials than one can see.

Text from the ledger is shown as it is, and never as markup. Plotly reads some tags in labels as
markup, so names and values are escaped before Plotly gets them. This module reads no ledger.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

import optuna
import optuna.visualization as drawn_by_optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from plotly.colors import sample_colorscale

from hpo.search.objectives import Direction
from hpo.search.ranking import sign

BEST = 20  # trials that every figure shows
MOST_LINES, MOST_POINTS, MOST_BARS = 200, 500, 2000  # that a figure draws
FEW_FOR_IMPORTANCES = 5  # complete trials
SLICES_A_ROW = 4
WIDTH = 1000  # pixels; the page prints them at 0.7, which is as wide as paper
FAINT = "rgba(140, 140, 140, 0.5)"
COLOURS = {  # by reason, in the order of drawing: what went wrong lies on top
    "finished": "#2a9d4a",
    "running": "#3b82f6",
    "pruned": "#b8bec7",
    "parked": "#d9c9f0",
    "exploited": "#a78bda",
    "stopped": "#8fd3e8",
    "diverged": "#f59e0b",
    "out_of_memory": "#a16207",
    "worker_lost": "#ef4444",
    "controller_lost": "#ec4899",
}
FAILED = "#991b1b"  # any other reason


@dataclass(frozen=True)
class Bar:
    """One attempt on the time line. Times are seconds since 1970."""

    controller: str
    reason: str
    begin: float
    end: float
    says: str


def thinned(ranked: Sequence[int], most: int) -> set[int]:
    """Return at most `most` of `ranked`, best first: the best, and a sample of others over time."""
    if len(ranked) <= most:
        return set(ranked)
    others = sorted(ranked[BEST:])
    step = len(others) / (most - BEST)
    return {*ranked[:BEST], *(others[int(i * step)] for i in range(most - BEST))}


def ranking(trials: Sequence[FrozenTrial], position: int, direction: Direction) -> list[int]:
    """Return the numbers of the complete trials by one objective's value, the best first."""
    drawn = filter(_is_drawn, trials)
    return [t.number for t in sorted(drawn, key=lambda t: sign(direction) * t.values[position])]


def history(study: optuna.Study, metric: str) -> go.Figure:
    """Draw every trial's value, and the best value so far."""
    figure = drawn_by_optuna.plot_optimization_history(study, target_name=escape(metric))
    return _scaled(figure, _values(study)).update_traces(line_shape="hv")


def importances(study: optuna.Study, metric: str) -> go.Figure:
    """Draw how much of the value each parameter explains. Raises ValueError if it cannot tell."""
    if len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])) < FEW_FOR_IMPORTANCES:
        raise ValueError(f"importances need {FEW_FOR_IMPORTANCES} complete trials")
    with warnings.catch_warnings(action="ignore"):  # they are about parameters that few trials have
        return drawn_by_optuna.plot_param_importances(study, target_name=escape(metric))


def parallel(study: optuna.Study, metric: str) -> go.Figure:
    """Draw a line for each trial over all parameters."""
    return drawn_by_optuna.plot_parallel_coordinate(study, target_name=escape(metric))


def slices(study: optuna.Study, metric: str) -> Iterator[go.Figure]:
    """Draw the value over each parameter, with a few parameters in each figure."""
    names = sorted({name for t in study.get_trials(deepcopy=False) for name in t.params})
    for first in range(0, len(names), SLICES_A_ROW):
        row = names[first : first + SLICES_A_ROW]
        figure = drawn_by_optuna.plot_slice(study, params=row, target_name=escape(metric))
        yield _scaled(figure, _values(study))


def pareto_front(study: optuna.Study, metrics: Sequence[str]) -> go.Figure:
    """Draw the trials that no other beats in everything. Raises ValueError above 3 objectives."""
    return drawn_by_optuna.plot_pareto_front(study, target_names=[*map(escape, metrics)])


def learning_curves(
    curves: Mapping[int, Mapping[int, float]], ranked: Sequence[int], metric: str
) -> go.Figure:
    """Draw a metric by step: the best trials in colour, others grey, and unfinished ones faint.

    `curves` is by trial number and step; `ranked` has the complete trials, the best first.
    """
    best = [number for number in ranked[:BEST] if number in curves]
    rest = [number for number in curves if number not in best]
    complete = set(ranked)
    figure = go.Figure()
    for name, colour, mode, numbers in (
        # A trial that was pruned at its first evaluation is a point, which needs a marker.
        ("pruned or unfinished", FAINT, "lines+markers", [n for n in rest if n not in complete]),
        ("complete", "rgba(70, 70, 70, 0.6)", "lines", [n for n in rest if n in complete]),
    ):
        if numbers:
            figure.add_scatter(
                **_joined(curves, numbers),
                name=name,
                mode=mode,
                line={"color": colour, "width": 0.8},
                marker={"color": colour, "size": 5},
            )
    shades = sample_colorscale("Viridis", [i / max(1, len(best)) for i in range(len(best))])
    for number, colour in reversed([*zip(best, shades, strict=True)]):  # the best on top
        figure.add_scatter(
            **_joined(curves, [number]),
            name=f"trial {number}",
            mode="lines",
            line={"color": colour},
        )
    values = [value for curve in curves.values() for value in curve.values()]
    _scaled(figure, values).update_yaxes(title=escape(metric))
    figure.update_layout(height=520, legend={"traceorder": "reversed"})  # room for its legend
    return figure.update_xaxes(title="optimizer step")


def depth_front(fronts: Mapping[int, Sequence[Mapping[str, Any]]]) -> go.Figure:
    """Draw each trial's perplexity by how many layers are kept; `fronts` is by trial number."""
    figure = go.Figure()
    for number, points in fronts.items():
        for search in sorted({point["search"] for point in points}):
            chosen = [point for point in points if point["search"] == search]
            figure.add_scatter(
                x=[point["depth"] for point in chosen],
                y=[point["valid_ppl"] for point in chosen],
                text=[f"layers {escape(str(point['layers']))}" for point in chosen],
                name=f"trial {number}, {escape(search)}",
                mode="lines+markers",
            )
    figure.update_layout(showlegend=True).update_yaxes(title="valid_ppl")
    return figure.update_xaxes(title="layers kept", dtick=1)


def time_line(bars: Sequence[Bar]) -> go.Figure:
    """Draw attempts, coloured by reason; a controller has a row for each that it ran at once."""
    rows = _rows(bars)
    figure = go.Figure()
    there = {bar.reason for bar in bars}
    for reason in [*(r for r in COLOURS if r in there), *sorted(there - COLOURS.keys())]:
        chosen = [(bar, row) for bar, row in zip(bars, rows, strict=True) if bar.reason == reason]
        figure.add_bar(
            orientation="h",
            base=[_date(bar.begin) for bar, _ in chosen],
            x=[1000 * (bar.end - bar.begin) for bar, _ in chosen],  # milliseconds, on a date axis
            y=[row for _, row in chosen],
            text=[escape(bar.says) for bar, _ in chosen],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
            name=escape(reason),
            marker={"color": COLOURS.get(reason, FAILED), "line": {"width": 0}},
        )
    figure.update_layout(barmode="overlay", bargap=0.15, height=130 + 26 * len(set(rows)))
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=sorted(set(rows)))
    return figure.update_xaxes(type="date", title="UTC")


def as_html(figure: go.Figure) -> str:
    """Return the figure as a piece of a page that has plotly.js already; it loads nothing."""
    figure.update_layout(template="plotly_white", title=None, width=WIDTH)
    figure.update_layout(
        height=figure.layout.height or 380, margin={"l": 70, "r": 20, "t": 30, "b": 50}
    )
    # Plotly's own button would upload the figure.
    config = {"displaylogo": False, "plotlyServerURL": "", "showSendToCloud": False}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config))


def to_draw(
    trials: Sequence[FrozenTrial],
    directions: Sequence[Direction],
    values: Callable[[FrozenTrial], Sequence[float]],
    keep: Collection[int] | None = None,
) -> optuna.Study:
    """Copy into memory what is drawn of complete trials; of the others, only their numbers."""
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), directions=directions)
    shown: dict[tuple[str, BaseDistribution], BaseDistribution] = {}
    for trial in trials:
        if _is_drawn(trial) and (keep is None or trial.number in keep):
            for item in trial.distributions.items():
                if item not in shown:
                    shown[item] = _shown_distribution(item[1])
            copy = create_trial(
                values=values(trial),
                params={escape(name): _shown(value) for name, value in trial.params.items()},
                distributions={escape(k): shown[k, d] for k, d in trial.distributions.items()},
                constraints=trial.constraints,
            )
        else:
            copy = create_trial(state=TrialState.FAIL)
        study.add_trial(copy)
    return study


def _values(study: optuna.Study) -> list[float]:
    return [t.values[0] for t in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])]


def _scaled(figure: go.Figure, values: Sequence[float]) -> go.Figure:
    """Make the vertical axis logarithmic where the best of `values` would be one line."""
    low, high = min(values), max(values)
    if not 0 < 5 * low < high:
        return figure
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    # Plotly's own labels leave out the zeros.
    return figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{t:,.6g}" for t in ticks])


def _is_drawn(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.COMPLETE and all(map(math.isfinite, trial.values))


def _shown(value: Any) -> Any:
    return escape(value) if isinstance(value, str) else value


def _shown_distribution(distribution: BaseDistribution) -> BaseDistribution:
    if isinstance(distribution, CategoricalDistribution):
        return CategoricalDistribution([_shown(choice) for choice in distribution.choices])
    return distribution


def _joined(curves: Mapping[int, Mapping[int, float]], numbers: Sequence[int]) -> dict[str, Any]:
    """Join curves to one line with gaps: a page with a trace for each would be slow."""
    x: list[int | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for number in numbers:
        x += [*curves[number], None]
        y += [*curves[number].values(), None]
        text += [f"trial {number}"] * (len(curves[number]) + 1)
    return {"x": x, "y": y, "text": text}


def _rows(bars: Sequence[Bar]) -> list[str]:
    """Return the row of each bar: the first of its controller's rows that is free by then."""
    ends: dict[str, list[float]] = defaultdict(list)
    rows: list[str] = [""] * len(bars)
    for index in sorted(range(len(bars)), key=lambda index: bars[index].begin):
        bar = bars[index]
        free = ends[bar.controller]
        row = next((i for i, end in enumerate(free) if end <= bar.begin), len(free))
        free[row : row + 1] = [bar.end]
        rows[index] = f"{escape(bar.controller)} · {row + 1:02}"
    return rows


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
