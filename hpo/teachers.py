"""The teachers that a study names: found and checked before anything is written.

A study keeps the run folder of each, which its content names, so that a config which is changed
later changes no study. Training them is not done here.
"""

from __future__ import annotations

import copy
import os
from typing import Any

from hpo.space import CategoricalDimension
from hpo.study import StudyConfig
from storage import TeacherRecord
from trainer import config as train_config
from trainer.settings import ConfigError, get_path, set_path
from trainer.teacher import Teacher, find_teacher

_PATH = "distillation.teacher"


def with_teachers(study: StudyConfig, source: str) -> tuple[StudyConfig, list[TeacherRecord]]:
    """The study with each teacher's run folder for its name, and those that it is to train.

    Raises ConfigError, naming the study file `source`, for a teacher that is not there or cannot
    teach all of the study's trials.
    """
    if not _may_distil(study):
        return study, []
    searched = study.space.get(_PATH)
    named = searched.probes() if searched else [get_path(study.train, _PATH)]
    try:
        found = [_find(study, name) for name in named]
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    folders = [str(teacher.folder) for teacher in found]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"{source}: space.{_PATH}: choices: two of them are the same teacher")
    to_train = [
        TeacherRecord(
            teacher.key, str(teacher.folder), teacher.config.to_yaml(), teacher.config.steps
        )
        for name, teacher in zip(named, found, strict=True)
        if not os.path.isdir(str(name))
    ]
    return _with_folders(study, folders), to_train


def _may_distil(study: StudyConfig) -> bool:
    searched = study.space.get("distillation.enabled")
    return bool(
        True in searched.probes() if searched else get_path(study.train, "distillation.enabled")
    )


def _find(study: StudyConfig, name: Any) -> Teacher:
    student = copy.deepcopy(study.train)
    set_path(student, "distillation.enabled", True)
    set_path(student, _PATH, name)
    if (contexts := study.space.get("data.context")) is not None:
        set_path(student, "data.context", max(contexts.probes()))  # type: ignore[type-var]
    teacher = find_teacher(train_config.resolve(student, "train"))
    assert teacher is not None
    teacher.check_ranks(study.resources.ranks)
    return teacher


def _with_folders(study: StudyConfig, folders: list[str]) -> StudyConfig:
    if _PATH in study.space:
        dimension = CategoricalDimension(type="categorical", choices=[*folders])
        return study.model_copy(update={"space": {**study.space, _PATH: dimension}})
    train = copy.deepcopy(study.train)
    set_path(train, _PATH, folders[0])
    return study.model_copy(update={"train": train})
