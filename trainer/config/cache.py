"""The cache folder, which all runs of this machine share."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.config.paths import absolute


def cache_dir() -> Path:
    """The folder of what this machine keeps for all runs: tokens, checksums and teachers."""
    given = os.environ.get("HPO_CACHE_DIR") or "~/.cache/layerdrop-hpo"
    return Path(absolute(given, "HPO_CACHE_DIR"))
