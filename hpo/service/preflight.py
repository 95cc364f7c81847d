"""Checks, before anything is written to the ledger, whether a study can run in its place."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.trial import TrialState

from hpo.control.places import study_folder, teacher_folder, trial_folder
from hpo.service.opening import Place, given_runs, new_runs
from hpo.study.config import StudyConfig
from hpo.study.functions import check_function
from hpo.study.load import config_of
from hpo.study.sections import local_cpus
from hpo.study.tracking import check_tracking
from storage import Ledger, StudyRecord
from trainer.config.plain import is_text
from trainer.config.settings import ConfigError, is_url, kept_document
from trainer.config.train import resolve
from trainer.data.splits import check_data
from trainer.runs.store import StoreError, check_writable
from trainer.teaching.teacher import content_folder, is_key, is_trained
from trainer.terminal import Quiet


def check_place(config: StudyConfig, place: Place, runs: str) -> None:
    """Raise ConfigError unless a trial fits, `runs` can be written, and all else is there.

    That is the texts, wandb if the study asks for it, and the user's own training function.
    """
    check_tracking(config.tracking)
    if config.trainer is not None:
        _check_own(config.trainer, config.study, runs)
    elif place.ray_address is None:  # else the texts are the cluster's
        data = resolve(config.train, f"study {config.study}").data
        check_data(data, test=config.is_evaluation)
    if place.ray_address is None:
        check_machine(config, local_cpus(), _local_gpus(config), "this machine")
    else:
        _check_cluster(config, place.ray_address)
    _check_runs(runs)


def _check_own(trainer: str, study: str, runs: str) -> None:
    if is_url(runs):
        raise ConfigError(
            f"--runs {runs}: a study with `trainer` keeps its checkpoints in a folder; give one, "
            "which all nodes see if there are several"
        )
    check_function(trainer, f"study {study}: trainer")


def _check_runs(runs: str) -> None:
    if is_url(runs):
        try:
            check_writable(runs)
        except (ConfigError, StoreError) as error:
            raise ConfigError(f"--runs {error}") from None
        return
    folder = Path(runs)
    # A link that leads nowhere is there, too: no folder can be made in its place.
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--runs {runs}: {there} is not a folder that can be written to")


def cluster_resources(ray_address: str) -> tuple[float, float]:
    """Return the CPUs and GPUs of a Ray cluster. Raises ConfigError if none of ours answers."""
    from hpo.workers import ray_start

    with _visited(ray_address):
        return ray_start.cluster_size()


def _check_cluster(config: StudyConfig, ray_address: str) -> None:
    from hpo.workers import ray_start

    wanted = config.resources
    with _visited(ray_address):
        (cpus, gpus), places = ray_start.cluster_size(), ray_start.places(wanted)
    check_machine(config, cpus, gpus, "the Ray cluster")
    if places < wanted.ranks:
        raise ConfigError(
            f"study {config.study}: resources.ranks: {wanted.ranks} ranks need as many "
            f"places, and the Ray cluster's nodes have {places}: one rank cannot be shared by two"
        )


@contextmanager
def _visited(ray_address: str) -> Iterator[None]:
    from hpo.workers import ray_start

    host, _, port = ray_address.rpartition(":")
    try:
        # Ray itself would try for minutes where nobody answers.
        socket.create_connection((host, int(port)), timeout=10).close()
        with (
            Quiet() as quiet,
            ray_start.ray_session(ray_address, "hpo-check", output=quiet.errors),
        ):
            yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--ray-address {ray_address}: no Ray cluster of ours answers there, or "
            f"$RAY_AUTH_TOKEN is not its token: {reason}"
        ) from None


def _local_gpus(config: StudyConfig) -> int:
    if not config.resources.gpus_per_rank:
        return 0
    import torch

    return torch.cuda.device_count()


def runs_of(ledger: Ledger, record: StudyRecord, given: str | None) -> str:
    """Return where the study's run folders are: as given, as the ledger keeps it, the default.

    Raises ConfigError if the folder that the ledger keeps has gone.
    """
    if (place := given_runs(given)) is not None:
        return place
    study = config_of(record).study
    kept = _kept_runs(ledger, record, study)
    if kept is None:
        return new_runs(None)
    if not is_text(kept) or not (is_url(kept) or Path(kept).is_absolute()):
        raise ConfigError(
            f"study {record.name}: the ledger has its run folders in {kept!a}, which is no "
            "absolute path; give --runs"
        )
    folder = study_folder(kept, study)
    if record.reserved_trials and not is_url(kept) and not Path(folder).is_dir():
        raise ConfigError(
            f"study {record.name}: its run folders were in {kept}, and there is no {folder} any "
            "more; give the --runs that they are in now"
        )
    return kept


def _kept_runs(ledger: Ledger, record: StudyRecord, study: str) -> str | None:
    """Return the place that the ledger keeps; for an older study, where its last trial is."""
    if record.runs is not None:
        return record.runs
    for trial in reversed(ledger.trials(record, *TrialState)):
        folder = str(trial.user_attrs.get("run_dir", ""))
        place = folder.removesuffix(trial_folder(f"/{study}", trial.number))
        if place != folder and (is_url(place) or Path(folder).is_absolute()):
            return place if is_url(place) or Path(folder).is_dir() else None
    return None


def check_run_folders(ledger: Ledger, record: StudyRecord, runs: str) -> None:
    """Raise ConfigError unless the study's runs are where the ledger says that they are.

    A study whose runs were moved together with the runs folder goes on in the new folder.
    """
    folder = study_folder(runs, config_of(record).study)
    for trial in ledger.trials(record, TrialState.RUNNING):
        here = trial_folder(folder, trial.number)
        kept = trial.user_attrs.get("run_dir")
        if kept != here and (is_url(runs) or not Path(here).is_dir()):
            raise ConfigError(
                f"--runs {runs}: trial {trial.number} of study {record.name} is kept in {kept!a}, "
                f"not in {here}; give the --runs that it is in, or copy it there"
            )
    for teacher in ledger.teachers(record):
        what = f"study {record.name}: teacher {teacher.key!a}"
        if not is_key(teacher.key):  # it becomes part of a path
            raise ConfigError(f"{what}: no key of a teacher's content; the ledger was changed")
        if is_trained(teacher.folder, teacher.steps):
            continue
        here = teacher_folder(folder, teacher.key)
        if not is_url(runs):
            here = str(content_folder(resolve(kept_document(teacher.config, what), what)))
        if teacher.folder != here:
            raise ConfigError(
                f"{what}: is to be trained in {teacher.folder!a}, and this machine's is {here}; "
                "set HPO_CACHE_DIR as it was when the study was started"
            )


def check_machine(study: StudyConfig, cpus: float, gpus: float, where: str) -> None:
    """Raise ConfigError unless one trial's gang fits on `where`, with `cpus` and `gpus`."""
    wanted = study.resources
    for kind, given, each in (
        ("cpus", cpus, wanted.cpus_per_rank),
        ("gpus", gpus, wanted.gpus_per_rank),
    ):
        if wanted.ranks * each > given:
            raise ConfigError(
                f"study {study.study}: resources.ranks: {wanted.ranks} ranks x {each} "
                f"{kind}_per_rank need {wanted.ranks * each} {kind.upper()}, and {where} has "
                f"{given:g}"
            )
