"""Recipes: named train settings, which ship or come from a study's trials, joined by `+`.

`best` is the study's best trial and `trial-7` its trial 7. The others are sections of a train
config in configs/recipes.yaml. A later part overrides an earlier one. This module only reads.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.control.places import teacher_folder
from hpo.search.space import assignments
from hpo.study.config import StudyConfig
from hpo.study.load import shipped
from storage import TeacherRecord
from trainer.config.sections import DistillationConfig, LayerDropConfig
from trainer.config.settings import (
    ConfigError,
    Section,
    get_path,
    is_url,
    nearest,
    read_document,
    set_path,
)
from trainer.config.train import resolve
from trainer.teaching.teacher import Teacher, find_teacher, teacher_of

BEST = "best"
DEFAULT = ("baseline-a", "baseline-b", "linear", "cosine", "baseline-b+kd", "cosine+kd", BEST)
TEACHER = "distillation.teacher"
_SECTIONS: dict[str, type[Section]] = {
    "layerdrop": LayerDropConfig,
    "distillation": DistillationConfig,
}
# Every recipe has the study's own values of these: they say how long to train and when to look.
_SAME_FOR_ALL = ("steps", "eval_every", "seed")

Settings = dict[str, Any]  # train settings by dotted path


def names_in(text: str) -> list[str]:
    """Return the names in a list with commas. Raises ConfigError for an empty or repeated name."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not name:
            raise ConfigError(f"--recipes {text}: a name is missing; give a,b,c")
        if names.count(name) > 1:
            raise ConfigError(f"--recipes {text}: {name} is there twice; remove one")
    return names


def settings_of(
    name: str, config: StudyConfig, trials: Sequence[FrozenTrial], best: FrozenTrial | None
) -> Settings:
    """Return what the recipe sets over the train config of the study `config` with these trials.

    Raises ConfigError, in one line, for a recipe that does not exist.
    """
    known = _known()
    settings: Settings = {}
    for position, part in enumerate(name.split("+")):
        if part in known:
            if position == 0:
                settings["distillation.enabled"] = False
            settings |= _whole_sections(known[part], config.train)
        elif part == BEST or re.fullmatch(r"trial-\d{1,9}", part):
            settings |= _of_trial(part, config, trials, best)
        else:
            raise ConfigError(
                f"--recipes: {name}: no recipe {part!r}{nearest(part, [*known, BEST])}; or a trial "
                "of the study's, such as trial-7; + joins them"
            )
    return settings


def sub_model_depths(layers: int) -> dict[str, int]:
    """Return the depths at which sub-models are measured, by their share of `layers`."""
    return {"3/4": math.ceil(layers * 3 / 4), "1/2": math.ceil(layers / 2)}


def _of_trial(
    part: str, config: StudyConfig, trials: Sequence[FrozenTrial], best: FrozenTrial | None
) -> Settings:
    if part == BEST and best is None:
        raise ConfigError(
            f"--recipes: {part}: study {config.study} has no trial that is complete and feasible, "
            "as `hpo trials` shows"
        )
    number = best.number if part == BEST and best else int(part.removeprefix("trial-"))
    trial = next((trial for trial in trials if trial.number == number), None)
    if trial is None or trial.state is TrialState.WAITING:
        raise ConfigError(
            f"--recipes: {part}: study {config.study} has tried no such trial, as `hpo trials` "
            "shows"
        )
    found = assignments(config.space, trial.params)
    return {path: value for path, value in found.items() if path not in _SAME_FOR_ALL}


def _whole_sections(sections: Mapping[str, Any], train: Mapping[str, Any]) -> Settings:
    settings: Settings = {}
    for section, given in sections.items():
        whole = {**_SECTIONS[section]().document(), **given}
        settings |= {f"{section}.{key}": value for key, value in whole.items()}
    if "distillation" in sections:  # with the study's teacher, if it has one
        settings[TEACHER] = get_path(train, TEACHER)
    return settings


def _known() -> dict[str, dict[str, Any]]:
    return read_document(shipped("recipes.yaml"))


def with_recipe_teachers(
    recipes: Mapping[str, Settings],
    config: StudyConfig,
    known: Sequence[TeacherRecord],
    folder: str,
) -> tuple[dict[str, Settings], list[TeacherRecord]]:
    """Return the recipes with the run folders of their teachers, and those teachers.

    `known` are the teachers of the study `config`; `folder` is the folder of the comparison. Raises
    ConfigError for a teacher that does not exist or cannot teach.
    """
    there = {teacher.folder: teacher for teacher in known}
    documents = {recipe: document_of(config, given) for recipe, given in recipes.items()}
    taught = [recipe for recipe in recipes if documents[recipe]["distillation"]["enabled"]]
    context = max((documents[recipe]["data"]["context"] for recipe in taught), default=1)
    named, needed = dict(recipes), {}
    for recipe in taught:
        name = documents[recipe]["distillation"]["teacher"]
        if (record := there.get(name)) is None:
            found = _find(documents[recipe]) if name else _baseline(config, context)
            where = teacher_folder(folder, found.key) if is_url(folder) else str(found.folder)
            record = TeacherRecord(found.key, where, found.config.to_yaml(), found.config.steps)
        named[recipe] = {**recipes[recipe], TEACHER: record.folder}
        needed[record.folder] = record
    return named, list(needed.values())


def document_of(config: StudyConfig, settings: Settings) -> dict[str, Any]:
    """Return the study's train document, which has every setting, with `settings` over it."""
    document = copy.deepcopy(config.train)
    for path, value in settings.items():
        set_path(document, path, value)
    return document


def _find(document: dict[str, Any]) -> Teacher:
    teacher = find_teacher(resolve(document, "--recipes"))
    assert teacher is not None, "it is enabled"
    return teacher


def _baseline(config: StudyConfig, context: int) -> Teacher:
    settings = settings_of("baseline-a", config, [], None)
    document = document_of(config, {**settings, "data.context": context})
    return teacher_of(resolve(document, "--recipes: baseline-a"))
