"""The clock by which a process waits. What machines must agree on goes by the database's clock."""

from __future__ import annotations

import time
from collections.abc import Callable

source: Callable[[], float] = time.monotonic  # a simulation puts its own here


def monotonic() -> float:
    """Return seconds that never go backwards, from a beginning that means nothing."""
    return source()
