"""Waiting while the database or the disk is away, up to a limit.

This module says when to look again, and when the wait has been too long. The controller looks.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import sqlalchemy as sa
from optuna.exceptions import OptunaError

from hpo.clock import monotonic
from hpo.control.messages import last_line
from hpo.errors import HpoError
from storage import LedgerError
from trainer.config.settings import is_url
from trainer.runs.store import check_writable

logger = logging.getLogger("hpo.controller")

LEDGER_ERRORS = (LedgerError, OptunaError, sa.exc.SQLAlchemyError)

FIRST_SECONDS, LONGEST_SECONDS = 0.5, 15.0  # between two looks
_PROBE_BYTES = 1 << 20


class Lifeline:
    """Something that the service needs: whether it is away, for how long, and when to look again.

    An answer does not end an outage: a disk may answer and have no room, a database may answer and
    take no row. It ends when something was kept there. Until then a new error belongs to it.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.away = False
        self._limit = limit_seconds
        self._began: float | None = None  # None: all is well
        self._pause = self._next = 0.0

    @property
    def seconds(self) -> float:
        return 0.0 if self._began is None else monotonic() - self._began

    @property
    def due(self) -> bool:
        """Whether it is away, and it is time to look again."""
        return self.away and monotonic() >= self._next

    def lost(self) -> bool:
        """Note an error, and look again later each time. Whether the outage has lasted too long."""
        self.away = True
        if self._began is None:
            self._began, self._pause = monotonic(), FIRST_SECONDS
            over = False
        else:
            self._pause = min(2 * self._pause, LONGEST_SECONDS)
            over = self.seconds > self._limit
        self._next = monotonic() + self._pause
        return over

    def answered(self) -> None:
        """Note that somebody looked and met no error."""
        self.away = False

    def kept(self) -> None:
        """Note that something was kept there: the outage is over."""
        self.away, self._began = False, None


class Disk(Lifeline):
    """The place of a study's runs: a folder, or a URL."""

    def __init__(self, place: str, limit_seconds: float) -> None:
        super().__init__(limit_seconds)
        self._place = place

    def refused(self, detail: str | None) -> DiskAway | None:
        """Note a failed write. Return the reason to leave, if the outage has lasted too long."""
        why = last_line(detail) or "it cannot be written to"
        away = DiskAway(f"the disk of {self._place}: {why}")
        if not self.away:
            logger.warning("the study pauses: %s", away)
        return away if self.lost() else None

    def look(self) -> DiskAway | None:
        """Try a write if the disk is away and it is time to. Return what `refused` returns."""
        if self.due:
            try:
                check_disk(self._place)
            except OSError as error:
                return self.refused(str(error))
            logger.warning("the disk takes writes again after %.0f s", self.seconds)
            self.answered()
        return None


class RayLost(HpoError, RuntimeError):
    """Ray's daemon on this machine died, or did not start."""


class DiskAway(HpoError):
    """A folder that trials are kept in cannot be written to."""


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
