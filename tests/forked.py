"""`python -m MODULE`, in processes forked from one that has imported already what takes seconds.

Each is a process of its own, with its own folder, environment, output, signals and exit status. A
test of how a process starts uses `subprocess` instead.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TextIO

CONTEXT = multiprocessing.get_context("forkserver")
_preloaded: list[str] = []


def preload(*modules: str) -> None:
    """Have all forked processes begin with `modules`; called before the first of them starts."""
    _preloaded.extend(each for each in modules if each not in _preloaded)
    CONTEXT.set_forkserver_preload(_preloaded)


class Forked:
    """A process that runs a module, with what tests use of `subprocess.Popen`'s methods."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start it, with its output in pipes; folder and environment are this process' if None."""
        self.args = [module, *arguments]
        self.returncode: int | None = None
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(2)]
        self.stdout, self.stderr = (_text(ours) for ours, _ in pipes)
        self._process = CONTEXT.Process(
            target=_run,
            args=(module, arguments, str(cwd or Path.cwd()), dict(env or os.environ),
                  *(theirs for _, theirs in pipes)),
        )  # fmt: skip
        self._process.start()
        for _, theirs in pipes:
            theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once it has ended. Raises TimeoutExpired."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return all that it prints from now on, once it has ended. Raises TimeoutExpired."""
        printed = ["", ""]

        def read(stream: TextIO, at: int) -> None:
            with stream:
                printed[at] = stream.read()

        readers = [
            threading.Thread(target=read, args=(stream, at), daemon=True)
            for at, stream in enumerate((self.stdout, self.stderr))
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return printed[0], printed[1]

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        if self.poll() is None:
            self._process.kill()

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait()


def run(
    module: str,
    *arguments: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float,
) -> subprocess.CompletedProcess[str]:
    """Run the module to its end, and kill it if that takes longer than `timeout` seconds."""
    process = Forked(module, *arguments, cwd=cwd, env=env)
    try:
        printed = process.communicate(timeout)
    finally:
        process.kill()
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, *printed)


def _text(pipe: Connection) -> TextIO:
    with pipe:
        return os.fdopen(os.dup(pipe.fileno()), encoding="utf-8", errors="replace")


def _run(
    module: str,
    arguments: tuple[str, ...],
    folder: str,
    environment: dict[str, str],
    *outputs: Connection,
) -> None:
    """In the new process: become what `python -m` would have made of it."""
    gc.freeze()  # what is imported already is no garbage at the end
    for stream, output in enumerate(outputs, start=1):
        os.dup2(output.fileno(), stream)
        output.close()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    sys.path[0] = folder
    ctypes.pythonapi.Py_Exit(_status(module))  # multiprocessing would leave all undone and open


def _status(module: str) -> int:
    """Run the module; its exit status."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
        return ending.code if isinstance(ending.code, int) else int(bool(ending.code))
    except BaseException:  # noqa: BLE001 - as Python itself does
        traceback.print_exc()
        return 1
    return 0
