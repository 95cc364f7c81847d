"""Loading of a study: from its file, with everything checked, or as the ledger has kept it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpo.search.samplers.config import check_sampler
from hpo.search.space import Space, values_of
from hpo.study.checks import checked
from hpo.study.config import StudyConfig, rules_of
from storage import StudyRecord
from trainer.config.paths import expanded
from trainer.config.settings import (
    ConfigError,
    kept_document,
    parse_assignment,
    read_document,
    set_path,
    validated,
)


def shipped(kind: str) -> Path:
    """Return the path of what ships with the program: `studies`, `train` or `recipes.yaml`."""
    installed = Path(__file__).parents[1] / "configs"
    root = installed if installed.is_dir() else Path(__file__).parents[2] / "configs"
    return root / kind


def find_study_file(given: str | None) -> Path:
    """Return the study file at a path, or the one that ships by a name. Raises ConfigError."""
    given = given or "quickstart"
    path = expanded(given, "STUDY.yaml")
    if path.is_file():
        return path
    named = shipped("studies") / f"{given}.yaml"
    if "/" not in given and named.is_file():
        return named
    names = ", ".join(sorted(file.stem for file in shipped("studies").glob("*.yaml")))
    raise ConfigError(f"{given}: no such file, nor a study that ships ({names})")


def load_study(
    path: Path, *, settings: Sequence[str] = (), name: str | None = None, trials: int | None = None
) -> StudyConfig:
    """Load the study in the file `path`, with `settings` (path=value) for its train config.

    Raises ConfigError, one line, for anything wrong: the study, its train config, a searched path,
    a bound, missing data, ranks that cannot share the batch. Writes nothing.
    """
    return study_of(read_document(path), path, settings=settings, name=name, trials=trials)


def study_of(
    document: dict[str, Any],
    path: Path,
    *,
    settings: Sequence[str] = (),
    name: str | None = None,
    trials: int | None = None,
) -> StudyConfig:
    """Load the study `document` as if a file at `path` had it. Raises as `load_study` does."""
    train = document.get("train")
    if isinstance(train, str):
        source = path.parent / expanded(train, f"{path}: train")
        document["train"] = read_document(source)
    else:
        source = path
    if isinstance(document.get("train"), dict):
        rules_of(document.get("trainer")).override(document["train"], settings, source.parent)
    if name is not None:
        document["study"] = name
    if trials is not None:
        budget = document.get("budget")
        document["budget"] = {**(budget if isinstance(budget, dict) else {}), "trials": trials}
    study = validated(StudyConfig, document, str(path))
    _check_seen(study.space, settings, str(path))
    study = checked(study, path, source)
    sampler, constrained = study.sampler, bool(study.constraints)
    check_sampler(sampler, study.space, len(study.objectives), constrained, str(path))
    return study


def restore_study(document: str, name: str) -> StudyConfig:
    """Return the study that the ledger kept. Raises ConfigError if this version cannot run it."""
    source = f"study {name}"
    return validated(StudyConfig, kept_document(document, source), source)


def config_of(record: StudyRecord) -> StudyConfig:
    """Return the settings of a study in the ledger. Raises as `restore_study` does."""
    return restore_study(record.document, record.name)


def _check_seen(space: Space, settings: Sequence[str], source: str) -> None:
    """Raise ConfigError for a setting that no trial would have: every trial searches it."""
    for path, _ in map(parse_assignment, settings):
        fixed, train = object(), dict[str, Any]()
        set_path(train, path, fixed)
        if not any(value is fixed for value in values_of(space, train, path)):
            raise ConfigError(
                f"--set {path}: {source} searches it in every trial; remove it from `space`, or "
                "start the study and give it a point with `hpo enqueue`"
            )
