"""Which ledger a command means, and opening it. Importing this module costs next to nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage import Ledger

DEFAULT_STORAGE = "sqlite:///hpo.db"


def storage_url(storage: str | None, in_file: str | None = None) -> str:
    """The ledger's URL: as given, else the environment's, else the study file's, else ours."""
    return storage or os.environ.get("HPO_STORAGE") or in_file or DEFAULT_STORAGE


def open_ledger(url: str, *, create: bool = False) -> Ledger:
    """The ledger at `url`. Raises LedgerError."""
    import optuna

    from storage import Ledger

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Ledger.open(url, create=create)
