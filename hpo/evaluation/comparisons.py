"""Comparisons: recipes trained beside each other under one budget and the same seeds, then tested.

A comparison is a study of its own, whose trials are pairs of a recipe and a seed (`phase.py`). It
keeps each recipe's settings, so that it goes on with what it began, whatever the study whose
recipes it compares has found meanwhile. `comparison_results.py` has its results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.control.places import study_folder
from hpo.evaluation.phase import (
    Plan,
    begun_trials,
    fresh_seeds,
    phase_config,
    phase_runs,
    teachers_again,
    tuned_study,
)
from hpo.evaluation.recipes import (
    DEFAULT,
    TEACHER,
    Settings,
    document_of,
    settings_of,
    sub_model_depths,
    with_recipe_teachers,
)
from hpo.search.ranking import best_of
from hpo.search.space import RECIPE, CategoricalDimension
from hpo.study.config import StudyConfig
from hpo.study.load import config_of
from storage import Ledger, Point, StudyNotFound
from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig, resolve
from trainer.data.splits import check_data

SUFFIX = ".comparison"


@dataclass(frozen=True)
class Comparison(Plan):
    """A plan to train each of the recipes under each of the seeds."""

    recipes: dict[str, Settings]
    note: str | None  # what the person should know of them, in one line

    def train(self, recipe: str) -> TrainConfig:
        """Return the recipe's resolved train config, with the first seed."""
        params = {RECIPE: recipe, "seed": self.seeds[0]}
        document = self.config.trial_document(params, "a comparison")
        return resolve(document, f"--recipes: {recipe}")


def plan_comparison(
    ledger: Ledger, name: str, recipes: Sequence[str], seeds: int, study: str, runs: str | None
) -> Comparison:
    """Plan the comparison `study` of `recipes`, in the settings of the study `name`.

    A comparison that was begun has its recipes as they were then, and all of them if none is given.
    Raises ConfigError, in one line, if no comparison can be made, or not yet. Writes nothing.
    """
    record, config = tuned_study(ledger, name)
    trials = ledger.trials(record, *TrialState)
    best = best_of(trials, config.objectives[0].direction)
    done = begun_trials(ledger, study)
    begun = _begun(ledger, study, name, done)
    fresh = fresh_seeds(config, trials, done, seeds)
    recipes = recipes or [*(_named(begun) if begun else DEFAULT)]
    now = {recipe: settings_of(recipe, config, trials, best) for recipe in recipes}
    teachers = teachers_again(ledger, record)
    if begun is None:
        folder = study_folder(phase_runs(ledger, name, study, runs), study)
        taught, teachers = with_recipe_teachers(now, config, teachers, folder)
        settings = {recipe: _with_depths(each, config) for recipe, each in taught.items()}
        choices = CategoricalDimension(type="categorical", choices=settings)
        made = phase_config(config, study, {RECIPE: choices}, len(now) * seeds)
    else:
        made, settings = begun, _recipes_of(begun, recipes, study)
    origin = done[0].user_attrs["origin"] if done else _origin(name, best)
    points = [
        Point({RECIPE: recipe, "seed": seed}, origin | {"recipe": recipe})
        for seed in fresh  # seed by seed, so that a comparison stopped early has whole pairs
        for recipe in recipes
    ]
    changed = [recipe for recipe in recipes if begun and not _same(now[recipe], settings[recipe])]
    note = None
    if changed:
        note = (
            f"{', '.join(changed)}: as it was when {study} was begun, and is another now; compare "
            "that under another name: --as NAME"
        )
    found = Comparison(name, made, fresh, points, teachers, settings, note)
    for train in map(found.train, recipes):
        train.check_ranks(made.resources.ranks)
        check_data(train.data, test=True)
    return found


def _origin(name: str, best: FrozenTrial | None) -> dict[str, Any]:
    return {"study": name} if best is None else {"study": name, "best": best.number}


def _same(now: Settings, begun: Settings) -> bool:
    return all(begun.get(path) == value for path, value in now.items() if path != TEACHER)


def _begun(
    ledger: Ledger, study: str, name: str, trials: Sequence[FrozenTrial]
) -> StudyConfig | None:
    try:
        config = config_of(ledger.study(study))
    except StudyNotFound:
        return None
    of = {trial.user_attrs.get("origin", {}).get("study") for trial in trials}
    if RECIPE not in config.space or of != {name}:
        raise ConfigError(
            f"study {study}: is there already, and is no comparison of {name}; use --as NAME"
        )
    return config


def _named(begun: StudyConfig) -> dict[str, Settings]:
    dimension = begun.space[RECIPE]
    assert isinstance(dimension, CategoricalDimension)
    return dimension.named


def _recipes_of(begun: StudyConfig, recipes: Sequence[str], study: str) -> dict[str, Settings]:
    named = _named(begun)
    for recipe in recipes:
        if recipe not in named:
            raise ConfigError(
                f"--recipes: {recipe}: {study} was begun with {','.join(named)}; compare others "
                "under another name: --as NAME"
            )
    return {recipe: named[recipe] for recipe in recipes}


def _with_depths(settings: Settings, config: StudyConfig) -> Settings:
    train = document_of(config, settings)
    depths = {*train["evaluation"]["depths"], *sub_model_depths(train["model"]["layers"]).values()}
    return {**settings, "evaluation.depths": sorted(depths)}
