"""Secrets planted in the tests' environment, and the search for them in all that the tests wrote.

Each begins with a mark of this run of pytest, its workers included, so that nothing else on the
machine has it, and one search finds them all.
"""

from __future__ import annotations

import mmap
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MARK = os.environ.setdefault("PLANTED_MARK", secrets.token_hex(8))
SINCE = float(os.environ.setdefault("PLANTED_SINCE", str(time.time())))

DATABASE_PASSWORD = f"{MARK}-database"
SECRETS = {
    "WANDB_API_KEY": f"{MARK}{'a' * 24}",  # of the length that wandb wants
    "RAY_AUTH_TOKEN": f"{MARK}{'b' * 48}",
    "AWS_ACCESS_KEY_ID": "planted",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}-aws",
}


def check(*texts: str | None) -> None:
    """Fail for a secret in what a command printed, or in its arguments."""
    for text in texts:
        assert MARK not in (text or ""), f"a secret was shown: {text}"


def found_in(*folders: Path) -> Iterator[Path]:
    """The files below `folders` that hold a secret: logs, databases, wandb's, whatever they are."""
    for folder in folders:
        # Unlike `rglob`, `walk` goes on where a folder has vanished meanwhile.
        for path in (Path(top, name) for top, _, names in os.walk(folder) for name in names):
            try:
                if not path.is_symlink() and path.is_file() and path.stat().st_size:
                    with (
                        path.open("rb") as file,
                        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
                    ):
                        if content.find(MARK.encode()) >= 0:
                            yield path
            except OSError:
                continue  # gone meanwhile


_NOTED = Path(tempfile.gettempdir(), f"hpo-planted-{SINCE}")


def note(folder: Path) -> None:
    """Note, for the end of the tests, which files of `folder` hold a secret: it is removed now."""
    for path in found_in(folder):
        with _NOTED.open("a") as file:
            file.write(f"{path}\n")


def noted() -> list[str]:
    """The files that were noted."""
    lines = _NOTED.read_text().splitlines() if _NOTED.exists() else []
    _NOTED.unlink(missing_ok=True)
    return lines


def ray_sessions() -> list[Path]:
    """The session folders of every Ray that was started since the tests were."""
    folders = Path(tempfile.gettempdir(), "ray").glob("session_*")
    return [f for f in folders if not f.is_symlink() and f.stat().st_mtime >= SINCE]
