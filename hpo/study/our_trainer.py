"""The rules of studies that our own trainer trains.

`own_trainer.py` has the same methods for studies of a user's own training function.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpo.search.objectives import check_known
from hpo.study.sections import Resources
from trainer.config import train as train_config
from trainer.config.settings import ConfigError

Document = dict[str, Any]


class OurTrainer:
    """The rules of studies that have no `trainer` key."""

    def check_metric(self, metric: str) -> None:
        """Raise ValueError unless our trainer can report `metric`."""
        check_known(metric)

    def override(self, train: Document, settings: Sequence[str], folder: Path) -> None:
        """Set each `path=value`; paths in the document are relative to `folder`."""
        train_config.anchor(train, folder)
        train_config.override(train, settings)

    def check_trial(self, document: Document, resources: Resources) -> None:
        """Raise ConfigError, in one line, unless a trial's `document` could be trained."""
        try:
            config = train_config.resolve(document, "train")
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix("train: ")) from None
        config.check_ranks(resources.ranks)

    def placed(self, document: Document, output_dir: str, resources: Resources) -> Document:
        """Return the train `document` with what the service sets itself."""
        placed = {**document, "output_dir": output_dir}
        if document.get("phase") != "evaluation":  # others do not know where the test is
            placed["data"] = {**placed.get("data", {}), "test": None}
        if not resources.gpus_per_rank:
            placed["threads"] = resources.cpus_per_rank
        return placed

    def printed(self, document: Document, source: str) -> str:
        """Return a trial's `document` as YAML that `python -m trainer` trains."""
        return train_config.resolve(document, source).to_yaml()
