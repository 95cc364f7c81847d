"""CMA-ES from the ledger's trials: Optuna's own state, without the pickle that Optuna keeps."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import CmaEsSampler

from hpo.search.samplers.cma_es import GENERATION, TOLD, CmaEsFromTrials

SPACE: dict[str, BaseDistribution] = {
    "x": FloatDistribution(-2.0, 4.0),
    "y": FloatDistribution(1e-4, 1.0, log=True),
}


def told(study: optuna.Study, trial: optuna.Trial) -> None:
    x, y = trial.suggest_float("x", -2.0, 4.0), trial.suggest_float("y", 1e-4, 1.0, log=True)
    study.tell(trial, (x - 1) ** 2 + np.log10(y) ** 2)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_its_state_is_the_one_that_optuna_would_have_unpickled(direction: str) -> None:
    theirs = CmaEsSampler(seed=3, popsize=4)
    study = optuna.create_study(sampler=theirs, direction=direction)
    for _ in range(27):
        told(study, study.ask())
    optimizer: Any = theirs._restore_optimizer(study.trials)
    ours: Any = CmaEsFromTrials(seed=9, popsize=4)
    transform = _SearchSpaceTransform(SPACE, transform_0_1=True)
    replayed = ours._init_optimizer(transform, study.direction)
    ours._replay(replayed, study.trials, transform, study.direction)
    assert replayed.generation == optimizer.generation == 6
    for name in ("_mean", "_C", "_sigma", "_pc", "_p_sigma"):
        # Optuna decomposes the covariance once more, with the pickle.
        np.testing.assert_allclose(getattr(replayed, name), getattr(optimizer, name), rtol=1e-9)


def test_a_pickle_in_the_ledger_is_not_loaded_and_none_is_written(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    study = optuna.create_study()
    for number in range(10):
        study.sampler = CmaEsFromTrials(seed=number, popsize=4)
        trial = study.ask()
        study._storage.set_trial_system_attr(
            trial._trial_id, "cma:optimizer:0", pickle.dumps(Code()).hex()
        )
        told(study, trial)
    assert not (tmp_path / "ran").exists()
    assert {key for t in study.trials for key in t.system_attrs} == {
        "cma:optimizer:0", GENERATION, TOLD,
    }  # fmt: skip
    study.sampler = CmaEsSampler(popsize=4)
    study.ask(SPACE)
    assert (tmp_path / "ran").exists(), "Optuna's own does"


def test_a_trial_that_completes_late_changes_no_generation_that_was_full_without_it() -> None:
    study = optuna.create_study(sampler=CmaEsFromTrials(seed=0, popsize=4))
    told(study, study.ask(SPACE))
    late, *others = [study.ask(SPACE) for _ in range(5)]
    for trial in others:
        told(study, trial)
    study.ask(SPACE)
    assert study.trials[-1].system_attrs[GENERATION] == 1
    told(study, late)
    study.ask(SPACE)
    (kept,) = [t.system_attrs[TOLD] for t in study.trials if TOLD in t.system_attrs]
    assert [number for number, _ in kept["0"]] == [trial.number for trial in others]
