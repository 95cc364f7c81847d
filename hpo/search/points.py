"""Points that a study is given to try: an earlier study's best trials, or a person's.

Here points are chosen and checked against the search space. A value outside the space is left out
and reported, and never changed to fit. The ledger enqueues the points, and the sampler draws the
values that a point lacks.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import optuna

from hpo.search.conditions import same
from hpo.search.ranking import best_trials
from hpo.search.space import Dimension, FloatDimension, IntDimension, Space, param_of
from storage import Ledger, LedgerError, Point
from trainer.config.paths import expanded_url
from trainer.config.sections import Count
from trainer.config.settings import ConfigError, Section, nearest, parse_assignment


class WarmStart(Section):
    """An earlier study, whose best trials a new one tries first."""

    study: str  # its name
    storage: str | None = None  # URL of its ledger; else the new study's own. Never kept
    top: Count = 5  # how many of its trials


def warm_points(
    warm: WarmStart, space: Space, url: str, source: str
) -> tuple[list[Point], list[str]]:
    """Return the earlier study's best points, as far as `space` has them, and what is left out.

    `url` is the new study's own ledger. Raises ConfigError, naming the study file `source`, when
    there is nothing to start from.
    """
    try:
        ledger = Ledger.open(expanded_url(warm.storage or url, "warm_start.storage"))
        ledger.study(warm.study)
    except LedgerError as error:
        raise ConfigError(f"{source}: warm_start: {error}") from None
    trials = best_trials(optuna.load_study(study_name=warm.study, storage=ledger.storage), warm.top)
    if not trials:
        raise ConfigError(
            f"{source}: warm_start.study: {warm.study} has no feasible trial that is complete: "
            "finish one first, or leave warm_start out"
        )
    points: dict[str, Point] = {}
    left_out: dict[str, None] = {}
    for trial in trials:
        params, reasons = fitted(space, trial.params)
        left_out.update(dict.fromkeys(f"warm start without {reason}" for reason in reasons))
        if params:
            origin = {"study": warm.study, "trial": trial.number}
            points.setdefault(repr(sorted(params.items())), Point(params, origin))
    return list(points.values()), list(left_out)


def point_by_hand(space: Space, assignments: Sequence[str], study: str) -> Point:
    """Return the point of the `path=value` texts. Raises ConfigError unless `space` has it."""
    params: dict[str, Any] = {}
    for text in assignments:
        path, value = parse_assignment(text)
        if path in params:
            raise ConfigError(f"{text}: {path} is given twice")
        params[path] = value
    params, reasons = fitted(space, params)
    if reasons:
        raise ConfigError(f"study {study}: {reasons[0]}")
    return Point(params, {"by": "hand"})


def fitted(space: Space, params: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values that `space` has, in its types, and for each of the others why not."""
    inside: dict[str, Any] = {}
    reasons: list[str] = []
    for path, value in params.items():
        if path not in space:
            reasons.append(f"{path}: is not searched{nearest(path, space)}")
            continue
        try:
            inside[path] = _as_suggested(space[path], path, value)
        except ValueError:
            reasons.append(f"{path}: {value!r} is outside the space: {_extent(space[path])}")
    for path in [*inside]:
        for parent, wanted in space[path].when.items():
            if parent in inside and not any(same(inside[parent], value) for value in wanted):
                reasons.append(f"{path}: is not searched when {parent} is {inside[parent]!r}")
                inside.pop(path, None)
    return inside, reasons


def _as_suggested(dimension: Dimension, path: str, value: Any) -> Any:
    """Return `value` as a trial would have it. Raises ValueError if no trial could have it."""
    value = param_of(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(dimension, (FloatDimension, IntDimension)) and not number:
        raise ValueError("not a number")
    probe = optuna.trial.FixedTrial({path: value})  # it has what a dimension uses of a Trial
    with warnings.catch_warnings(action="error"):
        try:
            dimension.suggest(cast(optuna.Trial, probe), path)
        except Warning as outside:  # Optuna would go on with the value
            raise ValueError(str(outside)) from None
    distribution = probe.distributions[path]
    return dimension.plain(distribution.to_external_repr(distribution.to_internal_repr(value)))


def _extent(dimension: Dimension) -> str:
    if isinstance(dimension, (FloatDimension, IntDimension)):
        steps = f" in steps of {dimension.step:g}" if dimension.step else ""
        return f"{dimension.low:g} to {dimension.high:g}{steps}"
    return f"one of {', '.join(str(choice) for choice in dimension.probes())}"
