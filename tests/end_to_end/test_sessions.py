"""A study's session of Ray on this machine: nobody else's to enter, and nothing is left of it."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.desk import Desk


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder with a path so short that sessions may be there."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_a_killed_study_leaves_no_folder_process_or_token_once_the_next_has_started(
    desk: Desk, place: Path
) -> None:
    home = desk.folder / "home"
    home.mkdir()
    desk.environment |= {"RAY_TMPDIR": str(place), "HOME": str(home)}
    # What a start was killed at, and a folder that only has such a name.
    (place / f"hpo-{os.getuid()}-deadbeef").mkdir()
    (place / f"hpo-{os.getuid()}-notes.txt").touch()
    file = desk.write_study(budget={"trials": 1}, train={"steps": 60, "eval_every": 20})
    controller = desk.start("start", str(file), "--set", "steps=100000")
    desk.wait_for(lambda: desk.steps(0), timeout=240)

    (folder,) = (path for path in place.iterdir() if path.is_dir())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert not (home / ".ray").exists(), "the token is the session's alone"
    first = [process for process in desk.ours() if process.pid != controller.pid]
    assert {"raylet", "gcs_server"} <= {process.name() for process in first}
    listening = [
        connection.laddr.ip.removeprefix("::ffff:")
        for process in desk.ours()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}

    desk.kill(controller)
    assert folder.exists()
    assert any(process.is_running() for process in first), "two of Ray's agents last for a minute"
    second = desk.start("resume", "tiny")
    desk.wait_for(lambda: desk.ranks())
    assert not folder.exists()
    assert not [process for process in first if process.is_running()]

    desk.interrupt(second)
    assert second.returncode == 130
    assert [path.name for path in place.iterdir()] == [f"hpo-{os.getuid()}-notes.txt"]
    assert not desk.ours()


def test_ctrl_c_is_heard_while_ray_is_blocked_at_its_start(desk: Desk, place: Path) -> None:
    desk.environment["RAY_TMPDIR"] = str(place)
    study = desk.start("start", str(desk.write_study()))
    started = desk.wait_for(lambda: [p for p in desk.ours() if p.name() == "gcs_server"])
    started[0].suspend()
    began = time.monotonic()
    printed, said = desk.interrupt(study)
    assert time.monotonic() - began < 30
    if study.returncode == -signal.SIGKILL:  # Ray held Python's lock all the time
        assert "it answers nothing, not even to leave" in printed
        for process in desk.ours():
            process.kill()
        return  # what is left goes at the next start
    assert (study.returncode, said) == (130, "study tiny is stopped; go on with: hpo resume tiny\n")
    assert not desk.ours()
    assert not list(place.iterdir())
