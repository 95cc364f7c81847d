"""Watches over a running controller from a thread of its own, and answers signals.

The guard looks for wishes to stop, for a database that is back, for what other controllers have
done, and for the ranks' progress. It decides nothing about trials.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from hpo.control.controller import Controller
from hpo.control.messages import Job, RankProgress
from hpo.observers.live import Board
from storage import LeaseLost

logger = logging.getLogger("hpo.service")

INTERRUPTED = 130  # exit status
POLL_SECONDS = 1.0
LOOKS_AT_OTHERS = 5  # polls from one look at what other controllers have finished to the next


class Gangs(Protocol):
    """What a guard wants of a controller's gangs. The module hpo.workers.gang has it."""

    def kill_all(self) -> None:
        """Kill every rank."""

    def request_stop(self, jobs: Collection[Job] | None = None) -> None:
        """Have the ranks that work at `jobs`, else all of them, checkpoint and stop."""

    def progress(self) -> dict[Job, RankProgress]:
        """Return the progress of each running job."""


class Guard:
    """Watches for signals, wishes to stop, a lost ledger and progress."""

    def __init__(self, controller: Controller, board: Board, *, exits: bool) -> None:
        """A second signal `exits` this process, or else raises KeyboardInterrupt."""
        self.signalled = False
        self.asked_to_stop = False  # by a signal, or `hpo stop`
        self._controller = controller
        self._board = board
        self._exits = exits
        self._looks = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals while the block runs: an exception could be lost in Ray while it starts."""
        before = self._listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Answer signals, noted ones too, and follow the ranks' progress while the block runs."""
        if self.signalled:
            self._stop("stopping")
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,), name="guard", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _listen(self) -> dict[signal.Signals, Any]:
        # Whoever ignores SIGHUP, as `nohup` does, wants the study to outlive the terminal.
        heard = {signal.SIGINT, signal.SIGTERM}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            heard.add(signal.SIGHUP)
        return {s: signal.signal(s, self._on_signal) for s in heard}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A handler may interrupt a print: it only leaves word for the thread that watches.
        if self.signalled and number == signal.SIGHUP:
            return  # a terminal that closes says so twice
        if self.signalled:  # leave at once: the checkpoints are what they are
            if self._exits:
                self._board.give_up()
                os._exit(INTERRUPTED)
            raise KeyboardInterrupt
        self.signalled = True

    def _watch(self, done: threading.Event) -> None:
        from hpo.workers import gang

        while not done.wait(POLL_SECONDS):
            try:
                self.look(gang)
            except Exception:
                # Whatever it was (Ray busy, say), the next look must still come.
                logger.exception("could not look after the trials")

    def look(self, gangs: Gangs) -> None:
        """Look once after everything, and tell `gangs`, those of this controller, what to do."""
        self._controller.mend()
        if not self._controller.stopping:
            if self.signalled:
                self._stop("stopping: running trials write a checkpoint; again to leave at once")
            elif not self._controller.waits_for_database and self._asked_to_stop():
                self._stop("stopping: asked to by `hpo stop`")
        if isinstance(self._controller.broken, LeaseLost):
            gangs.kill_all()  # others go on with their trials
        elif self._controller.stopping:
            gangs.request_stop()
        self._looks += 1
        if not self._controller.waits_for_database and self._looks % LOOKS_AT_OTHERS == 0:
            self._count_others()
            if jobs := self._controller.ended_outside():
                gangs.request_stop(jobs)
        self._board.progress(gangs.progress())

    def _count_others(self) -> None:
        leased = self._controller.leased
        controllers = leased.ledger.controllers(leased.record)
        if sum(controller.alive for controller in controllers) > 1:
            self._board.recall(self._controller.study)

    def _asked_to_stop(self) -> bool:
        leased = self._controller.leased
        asked_at = leased.ledger.stop_requested_at(leased.record)
        return asked_at is not None and asked_at > leased.lease.started_at

    def _stop(self, why: str) -> None:
        self.asked_to_stop = self._controller.stopping = True
        self._board.say(why)
