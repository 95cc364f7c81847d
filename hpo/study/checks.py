"""Everything about a study that can be checked before a row of it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hpo.search.conditions import check_conditions
from hpo.search.objectives import HYPERVOLUME, check_measured, comes_late
from hpo.search.population import check_schedule
from hpo.search.probing import check_trainable
from hpo.search.pruners import comparison
from hpo.search.space import (
    RECIPE,
    CategoricalDimension,
    Dimension,
    check_overlap,
    check_space,
    with_values,
)
from hpo.study.config import StudyConfig
from hpo.study.functions import check_function
from hpo.study.own_trainer import OwnTrainer
from trainer.config import train as train_config
from trainer.config.paths import absolute
from trainer.config.sections import EvaluationConfig
from trainer.config.settings import ConfigError, get_path
from trainer.data.splits import check_data, check_length

Document = dict[str, Any]


def checked(study: StudyConfig, path: Path, train_path: Path) -> StudyConfig:
    """Return the study of the file `path` as it is kept, with its train config resolved.

    `train_path` is the file that has the train config, perhaps the same file. Raises ConfigError,
    in one line that names file and key.
    """
    rules = study.rules
    if isinstance(rules, OwnTrainer):
        return _checked_for_own(rules, study, path, train_path)
    return _checked_for_ours(study, path, train_path)


def _checked_for_ours(study: StudyConfig, path: Path, train_path: Path) -> StudyConfig:
    """Return the study with its train config resolved. Raises ConfigError."""
    source, train_source = str(path), str(train_path)
    prefix = "train: " if path == train_path else ""
    study = _with_anchored_paths(study, path.parent)
    try:
        config = train_config.resolve(study.train, train_source)
    except ConfigError as error:
        raise ConfigError(
            str(error).replace(f"{train_source}: ", f"{train_source}: {prefix}", 1)
        ) from None
    config.check_tuning(f"{train_source}: {prefix}".rstrip(": "))
    check_space(study.space, source)
    check_conditions(study.space, config.model_dump(), source)
    if not study.space.keys() & {"data", "data.batch_size", "optim", "optim.accumulation"}:
        config.check_ranks(study.resources.ranks)
    check_data(config.data)
    if not any(path.split(".")[0] == "data" for path in study.space):
        check_length(config.data)
    check_trainable(study.space, _check_with_data(study), source)
    for key, metric in study.metrics():
        check_measured(metric, config.evaluation, f"{source}: {key}")
    check_pruner(study, config.evaluation, source)
    if study.schedule is not None:
        check_schedule(study.schedule, study.objectives[0].metric, study.space, config, source)
    return study.model_copy(update={"train": config.document()})


def _checked_for_own(
    rules: OwnTrainer, study: StudyConfig, path: Path, train_path: Path
) -> StudyConfig:
    """Return the study with the keys of `train` that the service reads. Raises ConfigError."""
    source = str(path)
    train_source = f"{source}: train" if path == train_path else str(train_path)
    if "output_dir" in study.train:
        raise ConfigError(f"{train_source}: output_dir: is set by the service itself; leave it out")
    train = rules.known(study.train, train_source)
    study = study.model_copy(update={"train": train})
    _check_features(study, source)
    check_overlap(study.space, source)
    for searched, dimension in study.space.items():
        _check_path(searched, dimension, train, f"{source}: space.{searched}")
    check_conditions(study.space, train, source, lambda path, value, what: None)
    check_trainable(study.space, study.check_params, source)
    check_function(rules.name, f"{source}: trainer")
    return study


def _check_with_data(study: StudyConfig) -> Callable[[dict[str, Any]], None]:
    """Return the check of a trial's parameters, with the texts that it would read."""
    checked: set[str] = set()  # a file that is read once for all

    def check(params: dict[str, Any]) -> None:
        study.check_params(params)
        config = train_config.resolve(study.trial_document(params, "a trial"), "train").data
        if repr(config) not in checked:
            check_data(config)
            check_length(config)
            checked.add(repr(config))

    return check


def check_pruner(config: StudyConfig, evaluation: EvaluationConfig, source: str) -> None:
    """Raise ConfigError unless trials report what the pruner compares while they run."""
    if config.pruner.name == "none":
        return
    metric, direction = config.compared_by_pruner
    if metric == HYPERVOLUME and direction == "minimize":
        raise ConfigError(f"{source}: pruner.direction: a larger {metric} is better; use maximize")
    if comes_late(metric, evaluation):
        raise ConfigError(
            f"{source}: pruner.name: {config.pruner.name} compares {metric} while trials run; set "
            "evaluation.depths_at: each in the train config, or use none"
        )


def _with_anchored_paths(study: StudyConfig, folder: Path) -> StudyConfig:
    """Return the study with absolute paths in its space, which are relative to `folder`."""
    space = study.space
    for path in train_config.PATHS:
        anchored = partial(_anchored, where=f"space.{path}", folder=folder)
        space = with_values(space, path, anchored)
    return study.model_copy(update={"space": space})


def _anchored(name: Any, where: str, folder: Path) -> Any:
    return absolute(name, where, folder) if isinstance(name, str) else name


def _check_features(study: StudyConfig, source: str) -> None:
    compared = comparison(study.pruner)
    if "objectives" not in study.model_fields_set:
        raise ConfigError(
            f"{source}: objectives: is required with `trainer`; name a metric that it yields"
        )
    if study.schedule is not None:
        raise ConfigError(
            f"{source}: schedule: trials begin at others' checkpoints, which are your `trainer`'s; "
            "leave it out"
        )
    if compared is not None and compared.unit == "tokens":
        raise ConfigError(f"{source}: pruner.unit: with `trainer` it must be steps, not tokens")


def _check_path(path: str, dimension: Dimension, train: Document, what: str) -> None:
    *sections, key = path.split(".")
    if not all((*sections, key)):
        raise ConfigError(f"{what}: must be keys with a dot between each two")
    if path == RECIPE:
        raise ConfigError(f"{what}: is a comparison's own name; call it otherwise")
    if (sections or [key])[0] == "output_dir":
        raise ConfigError(f"{what}: is set by the service itself and cannot be searched")
    for depth in range(1, len(sections) + 1):
        section = ".".join(sections[:depth])
        given = get_path(train, section)
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(f"{what}: {section} is {given!r} in `train`, and no section")
    given = get_path(train, path)
    named = isinstance(dimension, CategoricalDimension) and bool(dimension.named)
    if given is not None and isinstance(given, Mapping) != named:
        raise ConfigError(
            f"{what}: is one key of `train`; give its choices as a list"
            if named
            else f"{what}: is a section of `train`; search one of its keys"
        )
