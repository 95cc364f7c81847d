"""What a training function of a user's own asks of a study: little, for `train` is the function's.

Any mapping will do that has `steps`, and any dotted path can be searched in it. The methods are
those of hpo/our_trainer.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import ConfigDict, Field

from hpo.conditions import check_conditions
from hpo.functions import check_function
from hpo.probing import check_trainable
from hpo.pruners import comparison
from hpo.space import RECIPE, CategoricalDimension, Dimension, check_overlap
from trainer.sections import Count
from trainer.settings import (
    ConfigError,
    Section,
    get_path,
    nearest,
    parse_assignment,
    set_path,
    validated,
)

if TYPE_CHECKING:
    from hpo.study import Resources, StudyConfig

Document = dict[str, Any]


class _Known(Section):
    """The keys of `train` that the service reads; the others are the function's."""

    model_config = ConfigDict(extra="allow", frozen=True)

    steps: Count
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class OwnTrainer:
    """Of studies whose `trainer` is the function called `name`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def check_metric(self, metric: str) -> None:
        """Raise ValueError unless an evaluation can have `metric`."""
        if metric in ("", "step"):
            raise ValueError(f"{metric!r} is no metric; name one that {self._name} yields")

    def override(self, train: Document, settings: Sequence[str], folder: Path) -> None:
        """Set each `path=value` that `train` has already: a misspelt one would be a new one."""
        for assignment in settings:
            path, value = parse_assignment(assignment)
            there = {"seed", *_paths(train)}
            if path not in there:
                raise ConfigError(f"{path}: `train` has no such key{nearest(path, there)}")
            set_path(train, path, value)

    def checked(self, study: StudyConfig, path: Path, train_path: Path) -> StudyConfig:
        """The study, if its function is there. Raises ConfigError, naming file and key."""
        source = str(path)
        train_source = f"{source}: train" if path == train_path else str(train_path)
        if "output_dir" in study.train:
            raise ConfigError(
                f"{train_source}: output_dir: is set by the service itself; leave it out"
            )
        train = validated(_Known, study.train, train_source).model_dump()
        study = study.model_copy(update={"train": train})
        _check_features(study, source)
        check_overlap(study.space, source)
        for searched, dimension in study.space.items():
            _check_path(searched, dimension, train, f"{source}: space.{searched}")
        check_conditions(study.space, train, source, lambda path, value, what: None)
        check_trainable(study.space, study.check_params, source)
        check_function(self._name, f"{source}: trainer")
        return study

    def check_trial(self, document: Document, resources: Resources) -> None:
        """Raise ConfigError, in one line, unless the service can run a trial's `document`."""
        validated(_Known, document, "train")

    def placed(self, document: Document, output_dir: str, resources: Resources) -> Document:
        """The `document` with what the service sets itself."""
        return {**document, "output_dir": output_dir}

    def printed(self, document: Document, source: str) -> str:
        """A trial's `document` as YAML: what the function was called with."""
        config = yaml.safe_dump(document, sort_keys=False)
        return f"# For {self._name}; `python -m trainer` does not train it.\n{config}"


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


def _paths(train: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in train.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
