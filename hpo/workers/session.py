"""A controller's own folder on this machine: Ray's token, sockets and logs, and Tune's files.

No other account can enter it. It goes at the end, and after a kill at the next start, with what is
left of Ray's processes. A lock tells a living session from a dead one: the kernel drops it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from hpo.control.outage import RayLost

TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - the variable by which Ray finds its token
TOKEN, RAY, TUNE = "token", "ray", "tune"  # what a session's folder holds

# A socket's whole path may be no longer, and Ray puts this much behind its folder.
_PATH_BYTES = 103 if sys.platform == "darwin" else 107
_RAYS_BYTES = len("/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store")
_KILL_SECONDS = 10.0
_TRIES = 3


@contextmanager
def session_folder() -> Iterator[Path]:
    """Make the folder of a session, once those of dead ones are gone; remove it at the end.

    Raises RayLost if it cannot be made.
    """
    for base in _bases():
        for folder in base.glob(f"{_prefix()}????????"):
            lock = _locked(folder)
            if lock is not None:
                _clear(folder)
                os.close(lock)
    folder, lock = _made()
    try:
        yield folder
    finally:
        _clear(folder)
        os.close(lock)


def keep_logs(folder: Path, target: Path) -> None:
    """Copy Ray's logs of the session in `folder` to `target`, over older ones."""
    with suppress(OSError):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder / RAY / "session_latest" / "logs", target)


def processes(folder: Path) -> list[psutil.Process]:
    """Return Ray's living processes of the session in `folder`, those of its ranks among them.

    They were started with its token, or have its logs open: two of Ray's show no environment.
    """
    return [process for process in psutil.process_iter() if _is_of(process, folder)]


def _is_of(process: psutil.Process, folder: Path) -> bool:
    if process.pid == os.getpid():
        return False
    try:
        if process.environ().get(TOKEN_PATH) == str(folder / TOKEN):
            return True
        return process.name().startswith("ray::") and any(
            Path(file.path).is_relative_to(folder) for file in process.open_files()
        )
    except (psutil.Error, OSError):  # it is another account's, or gone
        return False


def _clear(folder: Path) -> None:
    left = processes(folder)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=_KILL_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


def _made() -> tuple[Path, int]:
    for base in _bases() * _TRIES:
        with suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix=_prefix(), dir=base))
            lock = _locked(folder)
            if lock is not None:
                return folder, lock
            # Another start took it, without a lock yet, for a dead session's.
            shutil.rmtree(folder, ignore_errors=True)
    raise RayLost("Ray did not start: no folder of ours can be made for its sockets in /tmp")


def _locked(folder: Path) -> int | None:
    """Return what holds the lock of a session's folder; None if it is held, not ours, or gone."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_uid == os.getuid() and folder.exists():
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _prefix() -> str:
    return f"hpo-{os.getuid()}-"


def _bases() -> list[Path]:
    """Return the folders in which sessions may have theirs, those that Ray would take first."""
    longest = _PATH_BYTES - _RAYS_BYTES - len(f"/{_prefix()}12345678/{RAY}")
    given = (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp")  # noqa: S108
    bases = [base for base in dict.fromkeys(given) if base]
    # Ray writes the path in ASCII.
    return [Path(base) for base in bases if base.isascii() and len(base) <= longest]
