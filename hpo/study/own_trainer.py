"""The rules of studies that a user's own training function trains.

They are few, because `train` belongs to the function: it is any mapping that has `steps`, and any
dotted path can be searched in it. The methods are those of `our_trainer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from hpo.study.sections import Resources
from trainer.config.plain import dumped
from trainer.config.sections import Count
from trainer.config.settings import (
    ConfigError,
    Section,
    nearest,
    parse_assignment,
    set_path,
    validated,
)

Document = dict[str, Any]


class _Known(Section):
    """The keys of `train` that the service reads; the others belong to the function."""

    model_config = ConfigDict(extra="allow", frozen=True)

    steps: Count
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class OwnTrainer:
    """The rules of studies whose `trainer` is the function called `name`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def check_metric(self, metric: str) -> None:
        """Raise ValueError unless an evaluation can have `metric`."""
        if metric in ("", "step"):
            raise ValueError(f"{metric!r} is no metric; name one that {self.name} yields")

    def override(self, train: Document, settings: Sequence[str], folder: Path) -> None:
        """Set each `path=value`; `train` must have the path already, or it may be misspelt."""
        for assignment in settings:
            path, value = parse_assignment(assignment)
            there = {"seed", *_paths(train)}
            if path not in there:
                raise ConfigError(f"{path}: `train` has no such key{nearest(path, there)}")
            set_path(train, path, value)

    def known(self, train: Document, source: str) -> Document:
        """Return `train` with all keys that the service reads. Raises ConfigError."""
        return validated(_Known, train, source).model_dump()

    def check_trial(self, document: Document, resources: Resources) -> None:
        """Raise ConfigError, in one line, unless the service can run a trial's `document`."""
        self.known(document, "train")

    def placed(self, document: Document, output_dir: str, resources: Resources) -> Document:
        """Return the `document` with what the service sets itself."""
        return {**document, "output_dir": output_dir}

    def printed(self, document: Document, source: str) -> str:
        """Return a trial's `document` as YAML: what the function was called with."""
        config = dumped(document)
        return f"# For {self.name}; `python -m trainer` does not train it.\n{config}"


def _paths(train: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in train.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
