"""Names of studies. A study's name is also its folder's, so no name may lead to another folder.

Every name is checked, typed or read, because another program may have written the database.
"""

from __future__ import annotations

import re

from storage.errors import LedgerError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_study_name(name: str) -> bool:
    """Return whether a study may have this name: ASCII, and no hidden folder anywhere."""
    return _NAME.fullmatch(name) is not None


def check_study_name(name: str) -> None:
    """Raise LedgerError, in one line, if no study may have this name."""
    if not is_study_name(name):
        shown = ascii(name) if len(name) <= 40 else f"{name[:40]!a}..."
        raise LedgerError(
            f"{shown} is no name for a study: use up to 100 letters, digits, dots, underscores and "
            "hyphens, the first a letter or a digit"
        )
