"""Finds and checks the teachers that a study names, before anything is written.

A study keeps the run folder of each teacher, whose name follows from the teacher's content. So a
config that is changed later changes no study. `control/teaching.py` trains the teachers.
"""

from __future__ import annotations

import copy
import os
from typing import Any

from hpo.control.places import study_folder, teacher_folder
from hpo.search.space import values_of, with_values
from hpo.study.config import StudyConfig
from storage import TeacherRecord
from trainer.config import train as train_config
from trainer.config.settings import ConfigError, get_path, is_url, set_path
from trainer.teaching.teacher import Teacher, find_teacher

_PATH = "distillation.teacher"


def with_teachers(
    study: StudyConfig, source: str, runs: str = ""
) -> tuple[StudyConfig, list[TeacherRecord]]:
    """Return the study with run folders in place of teachers' names, and the teachers to train.

    Where `runs` is a URL, teachers are trained there, since nodes do not see each other's caches.

    Raises ConfigError, naming the study file `source`, for a teacher that is not there or cannot
    teach all of the study's trials.
    """
    own = study.trainer is not None
    if own or not any(values_of(study.space, study.train, "distillation.enabled")):
        return study, []
    values = values_of(study.space, study.train, _PATH)
    try:
        found = {name: _find(study, name) for name in values if name is not None}
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    to_be_trained = {name for name in found if not os.path.isdir(name)}
    folders = {name: str(teacher.folder) for name, teacher in found.items()}
    if is_url(runs):
        folder = study_folder(runs, study.study)
        folders |= {name: teacher_folder(folder, found[name].key) for name in to_be_trained}
    if len(set(folders.values())) < len(folders):
        raise ConfigError(f"{source}: space.{_PATH}: choices: two of them are the same teacher")
    to_train = [
        TeacherRecord(teacher.key, folders[name], teacher.config.to_yaml(), teacher.config.steps)
        for name, teacher in found.items()
        if name in to_be_trained
    ]
    return _with_folders(study, folders), to_train


def _find(study: StudyConfig, name: Any) -> Teacher:
    student = copy.deepcopy(study.train)
    set_path(student, "distillation.enabled", True)
    set_path(student, _PATH, name)
    set_path(student, "data.context", max(values_of(study.space, study.train, "data.context")))
    teacher = find_teacher(train_config.resolve(student, "train"))
    assert teacher is not None
    teacher.check_ranks(study.resources.ranks)
    return teacher


def _with_folders(study: StudyConfig, folders: dict[str, str]) -> StudyConfig:
    def renamed(name: Any) -> Any:
        return folders.get(name, name)

    train = copy.deepcopy(study.train)
    set_path(train, _PATH, renamed(get_path(train, _PATH)))
    space = with_values(study.space, _PATH, renamed)
    return study.model_copy(update={"train": train, "space": space})
