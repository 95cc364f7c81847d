"""Pictures of one trial for the dashboard, as PNG: its learning curve and its depth front.

They are drawn from the ledger whenever somebody looks, and are not kept. No window is opened.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from storage import Ledger

Series = Mapping[str, list[tuple[int, float]]]  # the points of each line, by its legend


def learning_curve(ledger: Ledger, trial_id: int) -> Series:
    """Return valid perplexity by optimizer step; empty before the first evaluation."""
    found = [
        (step, metrics["valid_ppl"])
        for step, metrics in ledger.metrics(trial_id).items()
        if math.isfinite(metrics.get("valid_ppl", math.nan))
    ]
    return {"whole model": found} if found else {}


def depth_front(ledger: Ledger, trial_id: int) -> Series:
    """Return valid perplexity by layers kept, for each search that chose the layers."""
    found = defaultdict(list)
    for point in ledger.depth_front(trial_id):
        if math.isfinite(point["valid_ppl"]):
            found[str(point["search"])].append((point["depth"], point["valid_ppl"]))
    return found


# The keys are ids in the pictures' addresses, for which optuna-dashboard wants hexadecimal digits.
PICTURES: dict[str, tuple[str, str, Callable[[Ledger, int], Series]]] = {
    "c": ("learning-curve.png", "optimizer step", learning_curve),
    "d": ("depth-front.png", "layers kept", depth_front),
}


def drawn(series: Series, title: str, along: str) -> bytes:
    """Return a PNG of `series`, with perplexity on a logarithmic axis."""
    from matplotlib.figure import Figure  # not pyplot, which only one thread may use
    from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

    figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
    axes: Any = figure.subplots()
    for legend, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=legend)
    axes.set(title=title, xlabel=along, ylabel="valid_ppl", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0), numticks=12))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs=()))
    axes.grid(alpha=0.3)
    if len(series) > 1:
        for text in axes.legend().get_texts():
            text.set_parse_math(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
