"""The teachers of a comparison's recipes: the study's own, or Baseline A under the same budget."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from hpo.places import teacher_folder
from hpo.recipes import TEACHER, Settings, settings_of
from hpo.study import StudyConfig
from storage import TeacherRecord
from trainer.config import resolve
from trainer.settings import is_url, set_path
from trainer.teacher import Teacher, find_teacher, teacher_of


def with_teachers(
    recipes: Mapping[str, Settings],
    config: StudyConfig,
    known: Sequence[TeacherRecord],
    folder: str,
) -> tuple[dict[str, Settings], list[TeacherRecord]]:
    """The recipes with the run folders of their teachers, and those teachers.

    `known` are the teachers of the study `config`, `folder` is the comparison's. Raises ConfigError
    for a teacher that is not there or cannot teach.
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
    """The study's train document, which is whole, with these settings over it."""
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
