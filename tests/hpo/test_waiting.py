"""A wait in which a process is deaf is told, has a limit, and hears the first signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from hpo.workers import waiting

# A call of C that keeps the lock and begins again after a signal, as Ray waits for its daemon.
DEAF = """
import ctypes, signal, sys
from hpo.workers import waiting
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
with waiting.overseen("waiting for Ray", float(sys.argv[1]), sys.stdout):
    print("waits", flush=True)
    ctypes.PyDLL(None).system(b"exec sleep 30 >/dev/null")
"""


def deaf(limit_seconds: float) -> subprocess.Popen[str]:
    """A process that waits and is deaf."""
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF, str(limit_seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    while "sleep" not in [child.name() for child in psutil.Process(process.pid).children()]:
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [True, False])
def test_a_process_that_is_deaf_is_ended_at_a_signal_or_its_limit(signalled: bool) -> None:
    process = deaf(60.0 if signalled else 0.1)
    began = time.monotonic()
    if signalled:
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=50)
    assert process.returncode == -signal.SIGKILL
    assert (
        said
        == "hpo: waiting for Ray: it answers nothing, not even to leave; this process is killed\n"
    )
    assert time.monotonic() - began >= waiting.GRACE_SECONDS


def test_a_long_wait_is_told_and_its_end_ends_the_telling() -> None:
    program = "from hpo.workers import waiting as w; w.SAY_SECONDS = 0.0; w.oversee(0, 'waits', 9)"
    overseer = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert overseer.stdout is not None
    assert overseer.stdout.readline() == "hpo: waits, for at most 9 s\n"
    assert overseer.communicate(timeout=10) == ("", None)
    assert overseer.returncode == 0
