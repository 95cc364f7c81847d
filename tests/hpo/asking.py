"""Studies whose sampler proposes ahead, with a TPE that can hang, raise or die."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from hpo.search.halving import Halving
from hpo.search.samplers.ahead import AheadSampler
from hpo.search.samplers.proposals import Recipe
from hpo.search.samplers.rebuilt import RebuiltSampler

SPACE = {"x": optuna.distributions.FloatDistribution(0, 1)}


class TPEUnless(TPESampler):
    """TPE, but for one trial at which it hangs, raises or dies."""

    def __init__(self, trouble: str | None, seed: int) -> None:
        super().__init__(n_startup_trials=2, constant_liar=True, seed=seed)
        self._trouble = trouble

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.number == 3 and self._trouble == "hangs":
            if "BEGUN" in os.environ:
                Path(os.environ["BEGUN"]).touch()
            while not os.path.exists(os.environ["LET_GO"]):
                time.sleep(0.01)
        if trial.number == 3 and self._trouble == "raises":
            raise ValueError("no positive definite matrix")
        if trial.number == 3 and self._trouble == "dies":
            os.kill(os.getpid(), signal.SIGKILL)


def tpe(trouble: str | None) -> BaseSampler:
    """Seeded by trial."""
    return RebuiltSampler(partial(TPEUnless, trouble), seed=0)


def draw(trial: optuna.Trial) -> None:
    """All parameters of a trial; one of them is conditional."""
    if trial.suggest_categorical("kind", ["plain", "odd"]) == "odd":
        trial.suggest_float("only_odd", 0, 1)
    trial.suggest_float("x", 0, 1)


def study_of(
    trouble: str | None = None,
    concurrent: int = 1,
    storage: Any = None,
    halving: Halving | None = None,
) -> optuna.Study:
    recipe = Recipe("tpe", partial(tpe, trouble), draw, concurrent, trials=100, halving=halving)
    sampler = AheadSampler(recipe, RandomSampler(seed=1))
    return optuna.create_study(
        study_name="s", sampler=sampler, storage=storage, load_if_exists=True
    )
