"""The folder of what this machine keeps for all runs, and what a leading `~` in a path means."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.config.settings import ConfigError


def cache_dir() -> Path:
    """The folder of what this machine keeps for all runs: tokens, checksums, teachers."""
    return expanded(os.environ.get("HPO_CACHE_DIR") or "~/.cache/layerdrop-hpo", "HPO_CACHE_DIR")


def expanded(path: str, where: str) -> Path:
    """`path` with a leading `~` as a home folder. Raises ConfigError, which begins with `where`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{where}: {path}: {error}; give the full path") from None
