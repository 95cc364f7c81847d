"""Names of studies. A study's name is its folder's too, so that no name may lead out of there.

Asked of every name, typed or read: a database may have been written by another program.
"""

from __future__ import annotations

import re

from storage.errors import LedgerError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_study_name(name: str) -> bool:
    """Whether a study may be called so: ASCII, and not hidden, whatever the file system."""
    return _NAME.fullmatch(name) is not None


def check_study_name(name: str) -> None:
    """Raise LedgerError, in one line, for what no study may be called."""
    if not is_study_name(name):
        shown = ascii(name) if len(name) <= 40 else f"{name[:40]!a}..."
        raise LedgerError(
            f"{shown} is no name for a study: use up to 100 letters, digits, dots, underscores and "
            "hyphens, the first a letter or a digit"
        )
