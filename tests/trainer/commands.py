"""Runs `python -m trainer` as people do, most often in a forked process, which starts at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import forked

TIMEOUT_SECONDS = 100

forked.preload("tests.trainer.preloaded")


def command(config: Path, *settings: str, launcher: tuple[str, ...] = ()) -> list[str]:
    """Return the words of the command, for a process that is started anew."""
    launch = [*launcher, "-m", "trainer"] if launcher else ["trainer"]
    return [sys.executable, "-m", *launch, str(config), *settings]


def trainer(config: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end in a forked process."""
    return forked.run("trainer", str(config), *settings, timeout=TIMEOUT_SECONDS)


def trainer_anew(config: Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end in a process that is started anew."""
    return subprocess.run(
        command(config),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def newest_step(run: Path) -> int:
    return max(
        int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")
    )
