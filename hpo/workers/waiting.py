"""Oversees a wait in which this process may be deaf: Ray can hold Python's lock for minutes.

No thread would run then, nor a handler of a signal. So a process of its own says after a while what
is waited for. It kills the process that waits if that answers no signal, or stays past its limit.
As a program this file imports nothing of ours: it is to be there at once.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

SAY_SECONDS = 10.0  # a wait that is longer is told
GRACE_SECONDS = 8.0  # in which the process that waits may leave by itself
_LOOK_SECONDS = 0.5
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@contextmanager
def overseen(what: str, limit_seconds: float, output: IO[str] | None) -> Iterator[None]:
    """Oversee the wait in the block, which is called `what`; tell standard output, or another.

    Only the main thread hears signals; in another one nothing is overseen.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    overseer = subprocess.Popen(  # noqa: S603 - our own file
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), what, str(limit_seconds)],
        stdin=reading,
        stdout=None if output is None else output.fileno(),
        start_new_session=True,  # Ctrl-C is for the process that waits
    )
    os.close(reading)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # written without the lock
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        overseer.wait()


def oversee(process: int, what: str, limit_seconds: float) -> None:
    """Oversee `process` until it closes its end of our standard input."""
    began, told, signalled = time.monotonic(), False, float("inf")
    while True:
        ready, _, _ = select.select([0], [], [], _LOOK_SECONDS)
        waited = time.monotonic() - began
        if ready:
            heard = os.read(0, 64)
            if not heard:
                return
            if _SIGNALS & set(heard):
                signalled = min(signalled, waited)
        if waited > min(limit_seconds, signalled) + GRACE_SECONDS:
            _say(f"{what}: it answers nothing, not even to leave; this process is killed")
            if os.getppid() == process:
                os.kill(process, signal.SIGKILL)
            return
        if waited > SAY_SECONDS and not told:
            _say(f"{what}, for at most {limit_seconds:.0f} s")
            told = True


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal is gone
        print(f"hpo: {text}", flush=True)


if __name__ == "__main__":
    oversee(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
