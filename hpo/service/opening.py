"""Where a study is kept and run, as a command or a call names it; opening its ledger.

The shell's completion imports this module at every press of a key: it imports nothing heavy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpo.study.hints import DEFAULT_STORAGE

if TYPE_CHECKING:
    from storage import Ledger

DEFAULT_RUNS = "runs"


@dataclass(frozen=True)
class Place:
    """Where a study is kept and run."""

    storage: str | None  # the ledger's URL, if one was given
    runs: str | None = None  # the folder of all studies' run folders, or a URL, if one was given
    ray_address: str | None = None  # of a cluster to join; None: a local Ray
    metrics_port: int | None = None  # where Prometheus finds metrics; None: nowhere


def storage_url(storage: str | None, in_file: str | None = None) -> str:
    """Return the ledger's URL: as given, else the environment's, the study file's, the default."""
    url = storage or os.environ.get("HPO_STORAGE") or in_file or DEFAULT_STORAGE
    if "~" not in url:  # what most is needed for is not imported for nothing
        return url
    from trainer.config.paths import expanded_url

    return expanded_url(url, "--storage")


def given_runs(runs: str | None) -> str | None:
    """Return the place of run folders, absolute: as given, else the environment's, else None.

    Raises ConfigError.
    """
    from trainer.config.paths import absolute

    if runs:
        return absolute(runs, "--runs")
    in_environment = os.environ.get("HPO_RUNS")
    return absolute(in_environment, "HPO_RUNS") if in_environment else None


def new_runs(runs: str | None) -> str:
    """Return the place of a new study's run folders, absolute. Raises ConfigError."""
    from trainer.config.paths import absolute

    return given_runs(runs) or absolute(DEFAULT_RUNS, "--runs")


def open_ledger(url: str, *, create: bool = False) -> Ledger:
    """Open the ledger at `url`. Raises LedgerError."""
    import optuna

    from storage import Ledger

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Ledger.open(url, create=create)
