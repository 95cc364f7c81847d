"""Runs `python -m trainer` as people do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 100


def command(config: Path, *settings: str, launcher: tuple[str, ...] = ()) -> list[str]:
    launch = [*launcher, "-m", "trainer"] if launcher else ["trainer"]
    return [sys.executable, "-m", *launch, str(config), *settings]


def trainer(config: Path, *settings: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(config, *settings, **options),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def newest_step(run: Path) -> int:
    return max(
        int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")
    )
