"""The cache folder, which all runs of this machine share, and paths that begin with `~`."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.config.settings import ConfigError


def cache_dir() -> Path:
    """The folder of what this machine keeps for all runs: tokens, checksums and teachers."""
    return expanded(os.environ.get("HPO_CACHE_DIR") or "~/.cache/layerdrop-hpo", "HPO_CACHE_DIR")


def expanded(path: str, where: str) -> Path:
    """`path` with a leading `~` expanded. Raises a ConfigError that begins with `where`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{where}: {path}: {error}; give the full path") from None
