"""Command lines that we print for a person to type: each finds the ledger that it is about."""

from __future__ import annotations

import os
import shlex

DEFAULT_STORAGE = "sqlite:///hpo.db"


def found_ledger() -> str:
    """Return the URL of the ledger that a command without `--storage` finds."""
    return os.environ.get("HPO_STORAGE") or DEFAULT_STORAGE


def command(words: str, url: str) -> str:
    """Return the command `words`, with `--storage` unless it finds the ledger at `url` by itself.

    `url` is as `storage.database.shown` gives it, without a password.
    """
    from storage.database import shown

    return words if url == shown(found_ledger()) else f"{words} --storage {shlex.quote(url)}"
