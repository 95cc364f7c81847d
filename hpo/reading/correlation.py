"""Tune small, train big: does a big study rank its configurations as a small study does?

Only ranks are compared: a big model has other perplexities, and what carries over is which
configuration is better. This module reads two studies; it prints and writes nothing.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState
from scipy import stats

from hpo.reading.views import View
from hpo.search.space import CategoricalDimension, assignments
from hpo.study.load import config_of
from storage import Ledger
from trainer.config.settings import ConfigError, get_path

Configuration = tuple[tuple[str, Any], ...]
Floats = NDArray[np.float64]

ENOUGH = 3  # configurations: two of them are always in the same or in the reverse order
ENOUGH_FOR_AN_INTERVAL = 10
RESAMPLES = 9_999

_NOT_SEARCHED = object  # the value of a setting that a trial's other values left unsearched


def rank_correlation(small: tuple[Ledger, str], big: tuple[Ledger, str]) -> View:
    """Return Spearman's rho and Kendall's tau of each metric that both studies optimize.

    A configuration is a trial's values of the train settings that both studies search. Where
    several trials have the same configuration, their mean counts. Raises ConfigError if the
    studies have too little in common.
    """
    one, other = _Configurations(*small), _Configurations(*big)
    names = f"{one.name} and {other.name}"
    paths = sorted(one.paths & other.paths)
    if not paths:
        raise ConfigError(f"{names} search no train setting in common")
    metrics = [metric for metric in one.metrics if metric in other.metrics]
    if not metrics:
        raise ConfigError(
            f"{names} optimize different metrics: {', '.join(one.metrics)}; "
            f"{', '.join(other.metrics)}"
        )
    ours, theirs = one.values(paths), other.values(paths)
    shared = [configuration for configuration in ours if configuration in theirs]
    if len(shared) < ENOUGH:
        raise ConfigError(
            f"{names} have completed {len(shared)} configurations in common, and a rank "
            f"correlation needs {ENOUGH}: start {other.name} with warm_start: {{study: {one.name}, "
            f"top: {max(ENOUGH, 8)}}}, or `hpo enqueue` some"
        )
    return {
        "small": one.name,
        "big": other.name,
        "paths": paths,
        "configurations": len(shared),
        "metrics": {
            metric: agreement(
                [ours[configuration][metric] for configuration in shared],
                [theirs[configuration][metric] for configuration in shared],
            )
            for metric in metrics
        },
    }


def agreement(ours: list[float], theirs: list[float]) -> View:
    """Return the rank correlations of paired values; None where all values of a side are equal.

    p values are two-sided. That of rho is by permutation, and exact up to 7 pairs. The 95 %
    interval is a percentile bootstrap over the pairs; it is None below `ENOUGH_FOR_AN_INTERVAL`.
    """
    x, y = np.array(ours), np.array(theirs)
    if len(set(ours)) == 1 or len(set(theirs)) == 1:
        return dict.fromkeys(("spearman", "spearman_p", "spearman_95", "kendall", "kendall_p"))
    permuted = stats.permutation_test(
        (x,),
        lambda x, axis: _spearman(x, y, axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=0,
    )
    kendall = stats.kendalltau(x, y)
    return {
        "spearman": float(permuted.statistic),
        "spearman_p": float(permuted.pvalue),
        "spearman_95": _interval(x, y) if len(x) >= ENOUGH_FOR_AN_INTERVAL else None,
        "kendall": float(kendall.statistic),
        "kendall_p": float(kendall.pvalue),
    }


def _interval(x: Floats, y: Floats) -> list[float]:
    found = stats.bootstrap(
        (x, y),
        _spearman,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        rng=0,
    ).confidence_interval
    return [float(found.low), float(found.high)]


def _spearman(x: Floats, y: Floats, axis: int = -1) -> Floats:
    """Return Spearman's rho along `axis`; 0 where a side is all equal, as in some resamples."""
    a, b = (stats.rankdata(side, axis=axis) for side in (x, y))
    a, b = (side - side.mean(axis=axis, keepdims=True) for side in (a, b))
    scale = np.sqrt((a**2).sum(axis=axis) * (b**2).sum(axis=axis))
    covariance = (a * b).sum(axis=axis)
    rho: Floats = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    return rho


class _Configurations:
    """The configurations that a study has completed."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._config = config_of(ledger.study(name))
        self.name = name
        self.paths = {path for path in self._config.space for path in self._settings(path)}
        self.metrics = [objective.metric for objective in self._config.objectives]
        self._study = optuna.load_study(study_name=name, storage=ledger.storage)

    def values(self, paths: list[str]) -> dict[Configuration, dict[str, float]]:
        """Return the mean of each metric over the trials of each configuration."""
        found: dict[Configuration, list[list[float]]] = defaultdict(list)
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            settings = self._searched(trial.params)
            key = tuple((path, _plain(settings.get(path, _NOT_SEARCHED))) for path in paths)
            found[key].append(trial.values)
        return {
            key: dict(
                zip(self.metrics, map(statistics.fmean, zip(*values, strict=True)), strict=True)
            )
            for key, values in found.items()
        }

    def _searched(self, params: Mapping[str, Any]) -> dict[str, Any]:
        # A setting that a named choice leaves out has its value in the train config.
        fixed = {
            setting: get_path(self._config.train, setting)
            for path in params
            for setting in self._settings(path)
        }
        return {**fixed, **assignments(self._config.space, params)}

    def _settings(self, path: str) -> list[str]:
        """Return the train settings that a path sets; a section sets all that its choices name."""
        dimension = self._config.space.get(path)
        if not isinstance(dimension, CategoricalDimension) or not dimension.named:
            return [path]
        return [f"{path}.{key}" for each in dimension.named.values() for key in each]


def _plain(value: Any) -> Any:
    # A grid's 0.30000000000000004 is the 0.3 that a person types; True is not 1.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(f"{value:.12g}") if number else repr(value)
