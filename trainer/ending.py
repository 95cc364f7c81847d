"""End a process of ours sooner.

At its end Python looks for garbage several times, each time through all that was imported: with
torch that takes a second. A process with an open database must not use this, because what an
exception still holds stays open.
"""

from __future__ import annotations

import atexit
import gc


def end_soon() -> None:
    """Collect garbage once at the end, after all else that is done there, so that files close."""
    atexit.register(_collect_once)


def _collect_once() -> None:
    gc.collect()
    gc.freeze()
