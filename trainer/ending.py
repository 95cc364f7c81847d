"""How a process of ours ends: soon.

Python's own end looks for garbage several times over, each time through all that was imported: a
second with torch. Not for a process with a database open: what an exception still holds stays open.
"""

from __future__ import annotations

import atexit
import gc


def end_soon() -> None:
    """Have garbage looked for once, after all else that is done at the end: files get closed."""
    atexit.register(_collect_once)


def _collect_once() -> None:
    gc.collect()
    gc.freeze()
