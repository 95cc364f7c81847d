"""The lock of a run's folder, held by the process that trains there, and freed when it ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

_NAME = ".lock"


def folder_lock(folder: Path, seconds: float) -> FileLock:
    """The lock of `folder`; taking it waits up to `seconds` and then raises Timeout."""
    return FileLock(folder / _NAME, timeout=seconds, thread_local=False)


def in_use(folder: Path, seconds: float = 0.0) -> bool:
    """Whether another process trains in `folder`, and is not done within `seconds`."""
    if not (folder / _NAME).exists():
        return False
    try:
        with folder_lock(folder, seconds):
            return False
    except Timeout:
        return True
