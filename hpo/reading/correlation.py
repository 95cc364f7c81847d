"""Tune small, train big: does the order of a small study's configurations hold in a big one?

Ranks only: a big model's perplexities are others, and what carries over is which recipe is better.
Reads two studies; nothing here prints or writes.
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

from hpo.search.space import CategoricalDimension, assignments
from hpo.study.load import restore_study
from storage import Ledger
from trainer.config.settings import ConfigError, get_path

View = dict[str, Any]
Configuration = tuple[tuple[str, Any], ...]
Floats = NDArray[np.float64]

ENOUGH = 3  # configurations: two are always in perfect order, or perfectly reversed
ENOUGH_FOR_AN_INTERVAL = 10
RESAMPLES = 9_999

_NOT_SEARCHED = object  # by a trial whose other values do not call for it


def rank_correlation(small: tuple[Ledger, str], big: tuple[Ledger, str]) -> View:
    """Spearman's rho and Kendall's tau of each metric that both studies optimize.

    A configuration is a trial's values of the train settings that both studies search; of several
    trials of one, the mean counts. Raises ConfigError when the studies have too little in common.
    """
    one, other = _Study(*small), _Study(*big)
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
    """Rank correlations of paired values, None where all of one side are equal.

    p values are two-sided; rho's is by permutation, all of them up to 7 pairs. The 95 % interval
    is a percentile bootstrap over the pairs, None for so few that it would promise too much.
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
    """Spearman's rho along `axis`; 0 where all of one side are equal, as in some resamples."""
    a, b = (stats.rankdata(side, axis=axis) for side in (x, y))
    a, b = (side - side.mean(axis=axis, keepdims=True) for side in (a, b))
    scale = np.sqrt((a**2).sum(axis=axis) * (b**2).sum(axis=axis))
    covariance = (a * b).sum(axis=axis)
    rho: Floats = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    return rho


class _Study:
    """A study's completed configurations."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._config = restore_study(ledger.study(name).document, name)
        self.name = name
        self.paths = {path for path in self._config.space for path in self._settings(path)}
        self.metrics = [objective.metric for objective in self._config.objectives]
        self._study = optuna.load_study(study_name=name, storage=ledger.storage)

    def values(self, paths: list[str]) -> dict[Configuration, dict[str, float]]:
        """The metrics' mean over the trials of each configuration."""
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
        # What a named choice leaves out is as in the train config.
        fixed = {
            setting: get_path(self._config.train, setting)
            for path in params
            for setting in self._settings(path)
        }
        return {**fixed, **assignments(self._config.space, params)}

    def _settings(self, path: str) -> list[str]:
        """The train settings that a searched path sets: of a section, all that its choices name."""
        dimension = self._config.space.get(path)
        if not isinstance(dimension, CategoricalDimension) or not dimension.named:
            return [path]
        return [f"{path}.{key}" for each in dimension.named.values() for key in each]


def _plain(value: Any) -> Any:
    # A grid's 0.30000000000000004 is the 0.3 that a person types; True is not 1.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(f"{value:.12g}") if number else repr(value)
