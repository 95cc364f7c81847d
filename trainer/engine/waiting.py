"""Waiting for others, so that signals are heard and a long wait is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

SAY_SECONDS = 10.0
_LOOK_SECONDS = 0.1


def heard(work: Callable[[], T], say: Callable[[], None]) -> T:
    """Return what `work` returns, which is called in a thread; `say` is called once if it is long.

    Libraries wait outside of Python, where no handler of a signal runs. What a handler raises is
    raised here at once, and `work` is left behind.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            outcome.set_exception(error)

    began, told = time.monotonic(), False
    threading.Thread(target=run, name="waiting", daemon=True).start()
    while not outcome.done():
        time.sleep(_LOOK_SECONDS if told or time.monotonic() > began + 1 else 0.01)
        if not told and time.monotonic() > began + SAY_SECONDS:
            say()
            told = True
    return outcome.result()
