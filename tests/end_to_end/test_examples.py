"""The examples run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.desk import Desk

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.timeout(400)
def test_the_first_study_is_started_read_drawn_and_resumed(desk: Desk) -> None:
    script = [sys.executable, str(EXAMPLES / "first_study.py")]
    ran = subprocess.run(
        script, cwd=desk.folder, env=desk.environment, capture_output=True, text=True, timeout=300
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert "<study first: 2 of 2 trials, best valid_ppl" in ran.stdout
    assert "<study first: 3 of 3 trials, best valid_ppl" in ran.stdout
    assert {path.name for path in desk.folder.glob("*.html")} == {"history.html", "report.html"}
    assert desk.json("status", "first")["states"] == {"COMPLETE": 3}
