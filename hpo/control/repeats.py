"""Repeats: a promising configuration is trained again under other seeds before it may be best.

The perplexity of one training is one random draw. A trial whose value would be the best stays
RUNNING until it was trained `repeats` times; its value is then the mean, and the standard error is
kept. A trial that falls behind on the way ends there, with the mean so far.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hpo.search.ranking import feasible, sign

Metrics = Mapping[str, float]


def mean_metrics(results: Sequence[Metrics]) -> dict[str, float]:
    """Return the mean over `results` of each metric that all of them have."""
    common = [name for name in results[0] if all(name in result for result in results)]
    return {name: statistics.fmean(result[name] for result in results) for name in common}


def standard_errors(results: Sequence[Metrics], names: Iterable[str]) -> list[float]:
    """Return the standard error of each metric's mean: its sample deviation over the root of n."""
    return [
        statistics.stdev(result[name] for result in results) / len(results) ** 0.5 for name in names
    ]


def promising(
    values: Sequence[float], others: Iterable[FrozenTrial], directions: Sequence[StudyDirection]
) -> bool:
    """Whether no other trial, feasible and COMPLETE, is as good as `values` or better in all."""
    return not any(
        all(
            sign(direction) * theirs <= sign(direction) * ours
            for direction, theirs, ours in zip(directions, other.values, values, strict=True)
        )
        for other in feasible(others)
    )


def repeat_document(document: dict[str, Any], repeat: int) -> dict[str, Any]:
    """Return the train config of a trial's training number `repeat`, from that of number 0."""
    if repeat == 0:
        return document
    return {
        **document,
        "seed": (document["seed"] + repeat) % 2**32,
        "output_dir": f"{document['output_dir']}/repeat-{repeat}",
    }
