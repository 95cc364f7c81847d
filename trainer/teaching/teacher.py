"""The teacher that a train config names: which run it is, where it is, whether it is trained.

A teacher named by a train config is kept beside the token cache, under a key made of its content,
so that every run that needs it finds it there. Nothing here trains or imports torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.cache import cache_dir
from trainer.config.paths import absolute
from trainer.config.settings import ConfigError, is_url
from trainer.config.train import TrainConfig, load
from trainer.data.splits import data_key, fingerprint
from trainer.runs.identity import Identity, identity_in
from trainer.runs.remote import brought_teacher, has_finished

KEY_LENGTH = 16  # hex digits

# Settings that a run's weights do not depend on. The texts enter the key by their content.
_NOT_IN_KEY: dict[str, Any] = {
    "phase": True,
    "output_dir": True,
    "threads": True,
    "keep_checkpoints": True,
    "data": {"dir", "train", "valid", "test"},
}


@dataclass(frozen=True)
class Teacher:
    """A run whose last checkpoint teaches, or will teach once the run is trained."""

    config: TrainConfig  # of the run that trains it, in `folder`
    folder: Path
    key: str  # made of the content of the config and its data

    def trained(self) -> bool:
        """Whether all its steps are done."""
        return is_trained(self.folder, self.config.steps)

    def named_in(self, student: TrainConfig) -> TrainConfig:
        """`student` with the run itself as teacher: it stays when the config's file is changed."""
        assert student.distillation.teacher is not None, "it has found this one"
        if is_url(student.distillation.teacher):
            return student
        section = student.distillation.model_copy(update={"teacher": str(self.folder)})
        return student.model_copy(update={"distillation": section})

    def check_ranks(self, ranks: int) -> None:
        """Raise ConfigError unless the teacher is trained, or `ranks` ranks can train it."""
        if not self.trained():
            try:
                self.config.check_ranks(ranks)
            except ConfigError as error:
                raise ConfigError(f"distillation.teacher: {error}") from None


def find_teacher(student: TrainConfig) -> Teacher | None:
    """The teacher of `student`, or None. Only one that a config names may be untrained still.

    Raises ConfigError for a teacher that is missing, or cannot teach this student.
    """
    if not student.distillation.enabled:
        return None
    assert student.distillation.teacher is not None, "its config says so"
    named = absolute(student.distillation.teacher, "distillation.teacher")
    path = brought_teacher(named) if is_url(named) else Path(named)
    teacher = _in_folder(path) if path.is_dir() else _of_config(path)
    _check_fits(teacher, student, path)
    return teacher


def is_trained(folder: Path | str, steps: int) -> bool:
    """Whether the run in `folder`, or at that URL, did all `steps` and has its last checkpoint."""
    if is_url(str(folder)):
        return has_finished(str(folder), steps)
    folder = Path(folder)
    return _ending(folder) == "finished" and (folder / f"checkpoints/step-{steps:08}").is_dir()


def _in_folder(folder: Path) -> Teacher:
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"distillation.teacher: {folder}: holds no config.yaml; "
            "name the folder of a run, or a train config"
        )
    teacher = teacher_of(load(folder / "config.yaml"), folder)
    if not teacher.config.tests:  # another's test is none of a student's business
        now = Identity(data=data_key(teacher.config.data, test=False))
        now.check_content(identity_in(folder), f"distillation.teacher: {folder}")
    if _ending(folder) == "diverged":
        raise ConfigError(f"distillation.teacher: {folder}: its run diverged; name another")
    if not teacher.trained():
        raise ConfigError(
            f"distillation.teacher: {folder}: its run is not trained to the end; first let "
            f"`python -m trainer {folder}/config.yaml output_dir={folder}` go on with it"
        )
    return teacher


def _of_config(path: Path) -> Teacher:
    if not path.is_file():
        raise ConfigError(
            f"distillation.teacher: {path}: no such file or folder; "
            "name a run folder, or a train config that is trained first"
        )
    config = load(path)
    config.check_tuning(str(path))
    if config.distillation.enabled:
        raise ConfigError(
            f"{path}: distillation.enabled: a teacher that has one itself is not trained for you; "
            "train it by hand, and name its run folder"
        )
    return teacher_of(config)


def content_folder(config: TrainConfig) -> Path:
    """The folder of a teacher's run, by its content. Raises ConfigError for missing data."""
    return cache_dir() / "teachers" / _key(config)


def is_key(text: str) -> bool:
    """Whether `text` has the form of a teacher's key."""
    return re.fullmatch(f"[0-9a-f]{{{KEY_LENGTH}}}", text) is not None


def teacher_of(config: TrainConfig, folder: Path | None = None) -> Teacher:
    """The run of `config` as a teacher, in `folder` or in its `content_folder`."""
    key = _key(config)
    folder = folder or content_folder(config)
    return Teacher(config.model_copy(update={"output_dir": str(folder)}), folder, key)


def _key(config: TrainConfig) -> str:
    content = config.model_dump(mode="json", exclude=_NOT_IN_KEY)
    text = json.dumps([content, fingerprint(config.data)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _check_fits(teacher: Teacher, student: TrainConfig, path: Path) -> None:
    theirs, ours = teacher.config.data, student.data
    if fingerprint(theirs) != fingerprint(ours):
        raise ConfigError(
            f"distillation.teacher: {path}: it learns another text (data.name: {theirs.name}) than "
            f"its student ({ours.name}), so their vocabularies differ; give both the same data"
        )
    if theirs.context < ours.context:
        raise ConfigError(
            f"distillation.teacher: {path}: its data.context {theirs.context} is shorter than the "
            f"student's {ours.context}; use a teacher of {ours.context} or more"
        )


def _ending(folder: Path) -> str | None:
    try:
        kind: str | None = json.loads((folder / "result.json").read_text())["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kind
