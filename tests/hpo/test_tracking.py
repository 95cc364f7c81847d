"""Tracking with the real wandb, offline, and TensorBoard, read back from their files.

Each of wandb's trackers lives in a process of its own: wandb keeps one session a process. No server
is ever reached.
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
import yaml
from optuna.trial import TrialState
from pydantic import ValidationError

from hpo.control.messages import Message
from hpo.control.telling import Observers
from hpo.observers.background import Tracker
from hpo.observers.tensorboard import TensorBoardTracker
from hpo.observers.trackers import make_trackers
from hpo.study.tracking import TrackingConfig, WandbConfig, check_tracking
from storage import Ledger
from tests.hpo.stage import Stage, finish
from tests.leases import lapse
from tests.tensorboard_files import read_run, steps
from tests.wandb_files import Run, offline_runs
from trainer.config.settings import ConfigError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KEY = "5ecre7" * 7  # long enough for wandb to take it
PRELUDE = """
import logging, os, sys, time
from pathlib import Path
import hpo.observers.background
from hpo.study.tracking import WandbConfig
from hpo.observers.wandb import WandbTracker
logging.basicConfig(format="%(name)s: %(message)s")
assert "wandb" not in sys.modules

def tracker(say=lambda text: None, **wandb):
    return WandbTracker(WandbConfig(**wandb), "sweep", "uid-1", Path("runs"), say)
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
    config = {"seed": trial, "optim": {"lr": 0.1}, "layerdrop": {"policy": "static"}}
    t.begin(trial, 1, config, {"recipe": "baseline-b"})
for step in (100, 200, 300):
    for trial in (7, 8):
        t.report(trial, step, {"valid_ppl": trial * step, "drop_probability": 0.2})
t.end(8, "PRUNED", "diverged")
t.end(7, "RUNNING", "worker_lost")
t.begin(7, 2, {"seed": 7, "optim": {"lr": 0.1}}, {})
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
    assert pruned.config["trial_params"] == {"recipe": "baseline-b"}
    assert [row["valid_ppl"] for row in pruned.history] == [800, 1600, 2400]
    assert [row["drop_probability/layer_04"] for row in pruned.history] == [0.2] * 3
    assert (pruned.summary["state"], pruned.summary["reason"]) == ("PRUNED", "diverged")
    assert first.steps() + retry.steps() == [100, 200, 300, 400]
    assert (first.exit_codes, pruned.exit_codes, retry.exit_codes) == ([0], [0], [1])
    assert not files_with_key(tmp_path)


STUDY = """
from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.observers.trackers import make_trackers
from hpo.study.load import config_of
from storage import Ledger
from tests.hpo.stage import Stage

if not Path("hpo.db").exists():
    Stage(
        "sqlite:///hpo.db",
        tracking={"wandb": {"mode": "offline"}, "tensorboard": True},
        resources={"concurrent_trials": 2},
    )
ledger = Ledger.open("sqlite:///hpo.db")
record = ledger.study("played")
config = config_of(record)
trackers = make_trackers(config, ledger, record, Path("runs"), print)
controller = Controller(ledger, record, config, ledger.acquire(record), "/runs", trackers)
attempts = [controller.next(), controller.next()]

def say(kind, step):
    for attempt in attempts:
        metrics = {"valid_ppl": 9.0 - step / 100, "train_loss": 2.0}
        controller.handle(attempt.number, attempt.attempt.number, Message(kind, step, metrics))
"""


def test_a_killed_and_resumed_study_is_one_run_a_trial_without_gap_or_repeat_or_key(
    python: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    killed = python(
        f"{STUDY}\nsay('evaluated', 100); say('evaluated', 200); time.sleep(60)",
        WANDB_API_KEY=KEY,
    )
    core = service_of(killed)
    wait_for(lambda: [r.steps() for r in offline_runs(tmp_path / "runs")] == [[100, 200]] * 2, 20)
    killed.kill()
    lapse(Ledger.open(f"sqlite:///{tmp_path}/hpo.db"))
    successor = python(
        f"{STUDY}\nsay('evaluated', 250); say('finished', 300)\nfor t in trackers: t.close()",
        WANDB_API_KEY=KEY,
    )
    assert successor.communicate(timeout=60) == ("", "")
    runs: dict[str, list[Run]] = {}
    for run in offline_runs(tmp_path / "runs"):
        runs.setdefault(run.name, []).append(run)
    assert sorted(runs) == ["played-0000", "played-0001"]
    for before, after in runs.values():
        assert (before.id, before.group) == (after.id, "played")
        assert before.steps() + after.steps() == [100, 200, 250, 300]
        assert before.config == after.config
        assert (before.exit_codes, after.exit_codes) == ([], [0])
    assert len({before.id for before, _ in runs.values()}) == 2
    assert steps(tmp_path / "runs/tensorboard") == {
        f"trial-000{number}": [100, 200, 250, 300] for number in (0, 1)
    }
    assert not files_with_key(tmp_path)
    wait_for(lambda: gone(core), 60)


def test_an_error_of_wandb_turns_tracking_off_with_one_warning(
    python: Callable[..., subprocess.Popen[str]],
) -> None:
    process = python(
        """
t = tracker()
for trial in (1, 2):
    t.begin(trial, 1, {}, {})
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
t.begin(1, 1, {}, {})
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
    process = python('t = tracker(mode="online"); t.begin(1, 1, {}, {}); t.close()')
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert err.endswith("mode is online and wandb has no key; run `wandb login`\n")


def test_a_hanging_wandb_delays_no_call_and_is_left_behind(
    python: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = python(
        """
hpo.observers.background.CLOSE_SECONDS = 2.0
hpo.observers.background.QUEUE_SIZE = 50
t = tracker()
t.begin(1, 1, {}, {})
t.report(1, 100, {"valid_ppl": 9.0})
while not Path("stopped").exists():
    time.sleep(0.1)
start = time.monotonic()
t.begin(2, 1, {}, {})
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
hpo.observers.background.CLOSE_SECONDS = 3.0
t = tracker()
t.begin(1, 1, {"seed": 0}, {})
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
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db")
    study = stage.config.model_copy(update={"tracking": TrackingConfig(wandb=config)})
    assert make_trackers(study, stage.ledger, stage.record, tmp_path / "runs", print) == []
    assert not (tmp_path / "runs").exists()


def test_a_missing_wandb_says_how_to_install_it_even_beside_a_folder_of_offline_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=r"pip install layerdrop-hpo\[wandb\]") as raised:
        check_tracking(TrackingConfig(wandb=WandbConfig()))
    assert "\n" not in str(raised.value)


def test_an_unknown_tracking_key_is_refused() -> None:
    with pytest.raises(ValidationError):
        TrackingConfig.model_validate({"wandb": {"projetc": "x"}})


def test_wandb_without_a_key_says_once_that_runs_stay_here(
    python: Callable[..., subprocess.Popen[str]],
) -> None:
    process = python(
        "t = tracker(say=print); t.begin(1, 1, {}, {}); t.begin(2, 1, {}, {}); t.close()",
        WANDB_API_KEY="",
    )
    out, err = process.communicate(timeout=60)
    assert err == ""
    assert out == (
        "wandb has no key: its runs stay in runs/wandb; to send them: wandb login, wandb sync\n"
    )


def test_a_run_of_tensorboard_survives_a_kill_without_gap_or_repeat(tmp_path: Path) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db", tracking={"tensorboard": True})

    def trackers() -> list[Tracker]:
        return make_trackers(stage.config, stage.ledger, stage.record, tmp_path, print)

    [killed] = trackers()
    controller = stage.controller(killed)
    controller.next()
    controller.handle(0, 1, Message("evaluated", 100, {"valid_ppl": 9.0, "drop_probability": 0.1}))
    controller.handle(0, 1, Message("worker_lost"))
    retried = controller.next()
    assert retried is not None
    controller.handle(0, 2, Message("evaluated", 200, {"valid_ppl": 8.0}))
    killed.close()  # what comes now is written to the ledger, and never to TensorBoard
    controller._observers = Observers(())
    controller.handle(0, 2, Message("evaluated", 250, {"valid_ppl": 7.5}))
    stage.lapse()

    [successor] = trackers()
    finish(stage.controller(successor), 7.0)
    successor.close()
    assert steps(tmp_path / "tensorboard") == {"trial-0000": [100, 200, 250, 300]}
    assert steps(tmp_path / "tensorboard", "drop_probability/layer_04") == {"trial-0000": [100]}
    run = read_run(tmp_path / "tensorboard/trial-0000")
    (text,) = run.Tensors("config/text_summary")[-1].tensor_proto.string_val
    lr = stage.trials[0].params["optim.lr"]
    assert yaml.safe_load(text.strip(b"`yaml\n"))["optim"]["lr"] == lr
    started = run.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"optim.lr" in started


def test_tensorboard_without_a_disk_is_one_line_and_no_trial_fails(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("no folder")
    said: list[str] = []
    tracker = TensorBoardTracker(tmp_path / "tensorboard", [], [], lambda _: {}, said.append)
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db")
    controller = stage.controller(tracker)
    finish(controller)
    finish(controller)
    tracker.close()
    assert [trial.state for trial in stage.trials] == [TrialState.COMPLETE] * 2
    [line] = said
    assert line.startswith("tensorboard tracking is off for the rest of this run: ")


def test_a_training_that_is_not_ours_is_tracked_without_layers(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path, ["units", "depth"], ["score"], lambda _: {}, print)
    tracker.begin(3, 1, {"units": 8, "steps": 10}, {"units": 8})
    tracker.begin(4, 1, {"seed": 8, "steps": 10}, {"seed": 8})  # which could be a config of ours
    for trial in (3, 4):
        tracker.report(trial, 10, {"score": 0.5})
    tracker.close()
    compared = read_run(tmp_path / "trial-0003").SummaryMetadata
    assert b"depth" in compared("_hparams_/experiment").plugin_data.content, "a trial may lack one"
    values = compared("_hparams_/session_start_info").plugin_data.content
    assert b"units" in values
    assert b"depth" not in values
    assert steps(tmp_path, "score") == {"trial-0003": [10], "trial-0004": [10]}
    assert read_run(tmp_path / "trial-0004").Tags()["scalars"] == ["score"]


def test_both_trackers_may_be_on_at_a_time(tmp_path: Path) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db", tracking={"tensorboard": True, "wandb": {}})
    made = make_trackers(stage.config, stage.ledger, stage.record, tmp_path, print)
    for tracker in made:
        tracker.close()
    assert [type(tracker).__name__ for tracker in made] == ["WandbTracker", "TensorBoardTracker"]
