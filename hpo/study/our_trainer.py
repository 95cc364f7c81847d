"""What our trainer asks of a study: its train config, what it measures, what may be searched.

hpo/own_trainer.py has the same methods for a training function of a user's own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.conditions import check_conditions
from hpo.constraints import check_constraints
from hpo.objectives import check_known, check_objectives
from hpo.population import check_schedule
from hpo.probing import check_trainable
from hpo.pruning import check_pruner
from hpo.space import check_space, with_values
from trainer import config as train_config
from trainer.data import check_data
from trainer.settings import ConfigError

if TYPE_CHECKING:
    from hpo.study import Resources, StudyConfig

Document = dict[str, Any]


class OurTrainer:
    """Of studies without `trainer`."""

    def check_metric(self, metric: str) -> None:
        """Raise ValueError unless a training can report `metric`."""
        check_known(metric)

    def override(self, train: Document, settings: Sequence[str], folder: Path) -> None:
        """Set each `path=value`; paths in the document are relative to `folder`."""
        train_config.anchor_runs(train, folder)
        train_config.override(train, settings)

    def checked(self, study: StudyConfig, path: Path, train_path: Path) -> StudyConfig:
        """The study with its train config resolved. Raises ConfigError, naming file and key."""
        source, train_source = str(path), str(train_path)
        prefix = "train: " if path == train_path else ""
        study = _with_anchored_teachers(study, path.parent)
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
        check_trainable(study.space, study.check_params, source)
        check_objectives(study.objectives, config.evaluation, source)
        check_pruner(study, config.evaluation, source)
        check_constraints(study.constraints, config.evaluation, source)
        if study.schedule is not None:
            check_schedule(study.schedule, study.objectives[0].metric, study.space, config, source)
        check_data(config.data)
        config = config.model_copy(update={"data": train_config.absolute_data(config.data)})
        space = study.space
        for key in ("dir", "train", "valid", "test"):
            space = with_values(space, f"data.{key}", lambda path: path and os.path.abspath(path))
        return study.model_copy(update={"train": config.model_dump(mode="json"), "space": space})

    def check_trial(self, document: Document, resources: Resources) -> None:
        """Raise ConfigError, in one line, unless a trial's `document` could be trained."""
        try:
            config = train_config.resolve(document, "train")
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix("train: ")) from None
        config.check_ranks(resources.ranks)

    def placed(self, document: Document, output_dir: str, resources: Resources) -> Document:
        """The train `document` with what the service sets itself."""
        placed = {**document, "output_dir": output_dir}
        if document.get("phase") != "evaluation":  # then its worker is not told where the test is
            placed["data"] = {**placed.get("data", {}), "test": None}
        if not resources.gpus_per_rank:
            placed["threads"] = resources.cpus_per_rank
        return placed

    def printed(self, document: Document, source: str) -> str:
        """A trial's `document` as YAML that `python -m trainer` trains."""
        return train_config.resolve(document, source).to_yaml()


def _with_anchored_teachers(study: StudyConfig, folder: Path) -> StudyConfig:
    """The study with absolute paths for searched teachers, which are relative to `folder`."""

    def anchored(name: Any) -> Any:
        return train_config.absolute(name, folder) if isinstance(name, str) else name

    return study.model_copy(
        update={"space": with_values(study.space, "distillation.teacher", anchored)}
    )
