"""SIGTERM, SIGHUP and SIGINT: a run in progress checkpoints and stops, all else ends at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

_SAME_PRESS_SECONDS = 1.0  # torchrun forwards a Ctrl-C, so its ranks get one press twice


class StopSignals:
    """Takes these signals over for the rest of the process, but for a SIGHUP that is ignored."""

    def __init__(self) -> None:
        self._request_stop: Callable[[], None] | None = None
        self._received = signal.SIGTERM  # a rank may stop because of another's signal
        self._first_at = 0.0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:
                signal.signal(number, self._handle)

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that the signal ended: 143 or 130."""
        return 128 + self._received

    def call(self, request_stop: Callable[[], None]) -> None:
        """From now on a signal calls `request_stop`, and only a second SIGINT ends the process."""
        self._request_stop = request_stop

    def release(self) -> None:
        """From now on a signal ends the process at once; one that has come already ends it here."""
        self._request_stop = None
        if self._first_at:
            raise SystemExit(self.exit_status)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = 0.0 < self._first_at < now - _SAME_PRESS_SECONDS
        if self._request_stop is None or (again and number == signal.SIGINT):
            raise SystemExit(128 + number)
        if not self._first_at:
            self._first_at, self._received = now, signal.Signals(number)
        self._request_stop()
