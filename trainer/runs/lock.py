"""The lock of a run's folder: who holds it trains there. The kernel drops it with its process."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

_NAME = ".lock"


def folder_lock(folder: Path, seconds: float) -> FileLock:
    """The lock of `folder`, which is waited for `seconds`, then raises Timeout."""
    return FileLock(folder / _NAME, timeout=seconds, thread_local=False)


def in_use(folder: Path, seconds: float = 0.0) -> bool:
    """Whether another process trains in `folder`, and will not be done within `seconds`."""
    if not (folder / _NAME).exists():
        return False
    try:
        with folder_lock(folder, seconds):
            return False
    except Timeout:
        return True
