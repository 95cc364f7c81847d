"""Tracking with the real wandb, offline, read back from its files. No server is ever reached.

Each tracker lives in a process of its own: wandb keeps one session a process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from hpo.tracking import NullTracker, TrackingConfig, WandbConfig, make_tracker
from tests.wandb_files import offline_runs
from trainer.settings import ConfigError

ROOT = Path(__file__).parents[2]
KEY = "5ecre7" * 7  # long enough for wandb to take it
PRELUDE = """
import logging, os, sys, time
from pathlib import Path
import hpo.tracking
from hpo.tracking import TrackingConfig, WandbConfig, make_tracker
logging.basicConfig(format="%(name)s: %(message)s")
assert "wandb" not in sys.modules

def tracker(**wandb):
    config = TrackingConfig(wandb=WandbConfig(**wandb))
    return make_tracker(config, "sweep", "uid-1", Path("runs"))
"""


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python code with a tracker at hand, its home and working directory in tmp_path."""
    started = []

    def start(code: str, **env: str) -> subprocess.Popen[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
        clean |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), **env}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PRELUDE + code],
                cwd=tmp_path,
                env=clean,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def service_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The wandb-core process that `process` started."""
    wait_for(lambda: bool(psutil.Process(process.pid).children()), 20)
    [core] = psutil.Process(process.pid).children()
    return core


def test_trials_that_run_at_once_are_one_run_each_and_nothing_reaches_the_terminal(
    python: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = python(
        """
hooks = sys.exit, sys.excepthook
t = tracker(mode="offline", tags=["ptb"])
for trial in (7, 8):
    t.begin(trial, 1, {"seed": trial, "optim": {"lr": 0.1}})
for step in (100, 200, 300):
    for trial in (7, 8):
        t.report(trial, step, {"valid_ppl": trial * step})
t.end(8, "PRUNED", "diverged")
t.end(7, "RUNNING", "worker_lost")
t.begin(7, 2, {"seed": 7, "optim": {"lr": 0.1}})
for step in (200, 300, 400):
    t.report(7, step, {"valid_ppl": 1.0})
t.end(7, "FAIL", "error")
t.close()
assert (sys.exit, sys.excepthook) == hooks
""",
        WANDB_API_KEY=KEY,
    )
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    seen = {(run.name, run.summary["attempt"]): run for run in offline_runs(tmp_path / "runs")}
    first, pruned = seen["sweep-0007", 1], seen["sweep-0008", 1]
    retry = seen["sweep-0007", 2]
    assert len(seen) == 3
    assert first.id == retry.id != pruned.id
    assert {(run.group, *run.tags) for run in seen.values()} == {("sweep", "ptb")}
    assert pruned.config["seed"] == 8
    assert pruned.config["optim"] == {"lr": 0.1}
    assert [row["valid_ppl"] for row in pruned.history] == [800, 1600, 2400]
    assert (pruned.summary["state"], pruned.summary["reason"]) == ("PRUNED", "diverged")
    assert first.steps() + retry.steps() == [100, 200, 300, 400]
    assert (first.exit_codes, pruned.exit_codes, retry.exit_codes) == ([0], [0], [1])
    assert not files_with_key(tmp_path)


def test_a_killed_controller_leaves_readable_runs_and_its_successor_continues_them(
    python: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    killed = python(
        """
t = tracker()
t.begin(7, 1, {"seed": 7})
t.report(7, 100, {"valid_ppl": 9.0})
t.report(7, 200, {"valid_ppl": 8.0})
time.sleep(60)
"""
    )
    core = service_of(killed)
    wait_for(lambda: [run.steps() for run in offline_runs(tmp_path / "runs")] == [[100, 200]], 5)
    killed.kill()
    wait_for(lambda: gone(core), 60)
    successor = python(
        """
t = tracker()
t.begin(7, 2, {"seed": 7})
t.report(7, 300, {"valid_ppl": 7.0})
t.end(7, "COMPLETE", None)
t.close()
"""
    )
    assert successor.communicate(timeout=60) == ("", "")
    before, after = offline_runs(tmp_path / "runs")
    assert before.id == after.id
    assert before.steps() + after.steps() == [100, 200, 300]
    assert (before.exit_codes, after.exit_codes) == ([], [0])


def test_an_error_of_wandb_turns_tracking_off_with_one_warning(
    python: Callable[..., subprocess.Popen[str]],
) -> None:
    process = python(
        """
t = tracker()
for trial in (1, 2):
    t.begin(trial, 1, {})
    t.report(trial, 100, {"valid_ppl": 9.0})
    time.sleep(1)
    t.end(trial, "COMPLETE", None)
t.close()
print("trials done")
""",
        WANDB_API_KEY="too-short",
    )
    out, err = process.communicate(timeout=60)
    assert out == "trials done\n"
    assert len(err.splitlines()) == 1
    assert err.startswith("hpo.tracking: wandb tracking is off")
    assert "too-short" not in err


def test_the_death_of_wandbs_process_is_one_warning(
    python: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = python(
        """
t = tracker()
t.begin(1, 1, {})
t.report(1, 100, {"valid_ppl": 9.0})
while not Path("killed").exists():
    time.sleep(0.1)
for step in range(200, 1000, 100):
    t.report(1, step, {"valid_ppl": 9.0})
    time.sleep(0.1)
t.close()
"""
    )
    core = service_of(process)
    wait_for(lambda: bool(offline_runs(tmp_path / "runs")), 20)
    core.kill()
    (tmp_path / "killed").touch()
    out, err = process.communicate(timeout=30)
    assert (out, err.count("\n"), process.returncode) == ("", 1, 0)
    assert err.startswith("hpo.tracking: wandb tracking is off")


def test_online_without_a_key_is_a_warning_and_never_a_question(
    python: Callable[..., subprocess.Popen[str]],
) -> None:
    process = python('t = tracker(mode="online"); t.begin(1, 1, {}); t.close()')
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert err.endswith("mode is online and wandb has no key; run `wandb login`\n")


def test_a_hanging_wandb_delays_no_call_and_is_left_behind(
    python: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = python(
        """
hpo.tracking.CLOSE_SECONDS = 2.0
hpo.tracking.QUEUE_SIZE = 50
t = tracker()
t.begin(1, 1, {})
t.report(1, 100, {"valid_ppl": 9.0})
while not Path("stopped").exists():
    time.sleep(0.1)
start = time.monotonic()
t.begin(2, 1, {})
for step in range(100):
    t.report(2, step, {"valid_ppl": 9.0})
print(time.monotonic() - start)
t.close()
print(time.monotonic() - start)
"""
    )
    core = service_of(process)
    wait_for(lambda: bool(offline_runs(tmp_path / "runs")), 20)
    core.send_signal(signal.SIGSTOP)
    (tmp_path / "stopped").touch()
    try:
        out, err = process.communicate(timeout=30)
        assert gone(core)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            core.kill()
    calls_seconds, close_seconds = map(float, out.split())
    assert calls_seconds < 1.0
    assert close_seconds < 10.0
    assert (
        err
        == "hpo.tracking: wandb tracking is off for the rest of this run: 50 calls are waiting\n"
    )
    assert gone(core)


def test_the_key_is_used_when_there_is_one_and_written_nowhere(
    python: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = python(
        """
hpo.tracking.CLOSE_SECONDS = 3.0
t = tracker()
t.begin(1, 1, {"seed": 0})
t.close()
""",
        WANDB_API_KEY=KEY,
        WANDB_BASE_URL="http://127.0.0.1:9",
    )
    out, err = process.communicate(timeout=30)
    assert (out, err.count("\n")) == ("", 1)
    assert KEY not in err
    assert list((tmp_path / "runs" / "wandb").glob("run-*")), "not online"
    assert not files_with_key(tmp_path)


def files_with_key(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize("config", [None, WandbConfig(mode="disabled")])
def test_a_study_that_asks_for_no_tracking_gets_none(
    config: WandbConfig | None, tmp_path: Path
) -> None:
    tracker = make_tracker(TrackingConfig(wandb=config), "sweep", "uid-1", tmp_path)
    assert isinstance(tracker, NullTracker)
    tracker.begin(0, 1, {})
    tracker.report(0, 100, {})
    tracker.end(0, "COMPLETE", None)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_wandb_says_how_to_install_it_even_beside_a_folder_of_offline_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=r"pip install layerdrop-hpo\[wandb\]") as raised:
        make_tracker(TrackingConfig(wandb=WandbConfig()), "sweep", "uid-1", tmp_path)
    assert "\n" not in str(raised.value)


def test_an_unknown_tracking_key_is_refused() -> None:
    with pytest.raises(ValidationError):
        TrackingConfig.model_validate({"wandb": {"projetc": "x"}})
