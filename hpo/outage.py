"""Something that the service needs is away, the database or the disk: waited out, up to a limit.

Says when to look again, and when it has been away for too long. Who looks, and at what, is the
controller's affair.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError

from storage import RolledBack
from trainer.settings import is_url
from trainer.store import check_writable

FIRST_SECONDS, LONGEST_SECONDS = 0.5, 15.0  # between two looks
_PROBE_BYTES = 1 << 20


class Outage:
    """One of them, from its first error on."""

    def __init__(self, error: Exception, limit_seconds: float) -> None:
        self.error = error
        self._began = time.monotonic()
        self._limit = limit_seconds
        self._pause = FIRST_SECONDS
        self._next = self._began + self._pause

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self._began

    @property
    def due(self) -> bool:
        """Whether it is time to look again."""
        return time.monotonic() >= self._next

    @property
    def over_limit(self) -> bool:
        """Whether it has lasted for too long."""
        return self.seconds > self._limit

    def goes_on(self, error: Exception) -> None:
        """Somebody looked, and met `error`: look less often."""
        self.error = error
        self._pause = min(2 * self._pause, LONGEST_SECONDS)
        self._next = time.monotonic() + self._pause


class RayLost(RuntimeError):
    """Ray's daemon on this machine died, or did not start."""


class DiskAway(Exception):
    """A folder that trials are kept in cannot be written to."""


def database_is_away(error: Exception) -> bool:
    """Whether `error` says that the database cannot be reached or cannot write, for now."""
    if isinstance(error, StorageInternalError):  # Optuna's, around what SQLAlchemy raised
        return not isinstance(error.__cause__, sa.exc.DBAPIError) or _away(error.__cause__)
    return isinstance(error, (RolledBack, sa.exc.TimeoutError)) or _away(error)


def in_one_line(error: BaseException) -> str:
    """What a database's error says, without its SQL and parameters."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "orig", None) or error).split())[:500]


def _away(error: BaseException | None) -> bool:
    lost = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
    return lost or isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError))


def check_disk(place: str) -> None:
    """Raise OSError unless a file of a megabyte can be written to `place`, a folder or a URL."""
    if is_url(place):
        return check_writable(place)
    folder = Path(place)
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)
    return None
