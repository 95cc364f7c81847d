"""The command line, as people and job schedulers use it: real processes, signals, torchrun."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests import forked
from tests.forked import Forked
from tests.trainer.commands import TIMEOUT_SECONDS, command, newest_step, trainer, trainer_anew

pytestmark = pytest.mark.slow

Tiny = Callable[..., dict[str, Any]]
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path) -> Path:
    """A config file of a run in `tmp_path / "run"`; its last of 12 steps is an evaluation."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny(tmp_path / "run")))
    return file


def wait_for_checkpoint(config: Path, process: Forked | subprocess.Popen[str]) -> None:
    """Wait until the run of `config` has one."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not list((config.parent / "run").glob("checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop_midway(
    config: Path, number: int, process: Forked | subprocess.Popen[str]
) -> tuple[int | None, str, str]:
    """Send a signal after the first evaluation: the exit status, and what was written."""
    with process:
        wait_for_checkpoint(config, process)
        process.send_signal(number)
        output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
        return process.returncode, output, errors


def test_help_says_what_it_does() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "trainer", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for word in ("CONFIG.yaml", "path=value", "torchrun", "checkpoint", "Exit status"):
        assert word in shown


def test_a_training_says_what_it_measures_and_nothing_else(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = trainer(config)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for step, line in zip((4, 8, 12), lines, strict=True):
        pattern = rf"step {step}/12  valid_ppl \d+\.\d\d  train_loss \d\.\d{{4}}  [\d,]+ tokens/s"
        assert re.fullmatch(pattern, line)
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} - {".lock", ".claim", "identity.json"} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "result.json",
        "log.txt",
    }
    # The resolved config trains the same run again, and this one has finished.
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    again = trainer_anew(run / "config.yaml")
    assert again.stdout.splitlines() == ["going on from step 12", lines[-1]]
    imported = (run / "log.txt").read_text()
    assert "deepspeed.runtime.zero.muon" in imported, "the engine was built"
    assert "torch._inductor.compile_fx" not in imported, "the compiler, which takes a second"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optim.lrr=1"], "trainer: optim.lrr: no such train setting; did you mean optim.lr?"),
        (["data.batch_size=9"], "9 sequences cannot be cut into optim.accumulation 2"),
        (["data.train=missing.txt"], "missing.txt"),
        (["data.context=2000"], "data.batch_size: 8 sequences of data.context 2000 need"),
        (["deepspeed.zero_optimization={no_such: 1}"], "deepspeed: .*no_such"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_and_nothing_is_written(
    config: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    done = trainer(config, *settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(message, done.stderr)
    assert done.stderr.startswith("trainer: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_told_once_by_two_ranks(config: Path, tmp_path: Path) -> None:
    done = forked.run(*TORCHRUN, "-m", "trainer", str(config), "data.batch_size=2", timeout=100)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("trainer: ")]
    assert len(told) == 1
    assert "cannot be shared by 2 ranks x 2 micro steps" in told[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_checkpoints_and_stops(
    config: Path, tmp_path: Path, number: int, status: int
) -> None:
    process = Forked("trainer", str(config), "steps=100000")
    returncode, output, errors = stop_midway(config, number, process)
    step = newest_step(tmp_path / "run")
    assert (returncode, errors) == (status, "")
    stopped = f"stopped at step {step}; the same command goes on from there"
    assert output.splitlines()[-1] == stopped


def test_torchrun_hands_a_sigterm_on_and_two_ranks_stop_together(
    config: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(config, "steps=100000", launcher=TORCHRUN),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, output, _ = stop_midway(config, signal.SIGTERM, process)
    step = newest_step(tmp_path / "run")
    assert f"stopped at step {step}; the same command goes on from there" in output
    assert output.count("step 4/100000") == 1  # one rank speaks for both


def test_a_run_killed_on_two_ranks_goes_on_on_one(config: Path, tmp_path: Path) -> None:
    settings = ("steps=200", "eval_every=100")
    with Forked(*TORCHRUN, "-m", "trainer", str(config), *settings) as process:
        wait_for_checkpoint(config, process)
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.communicate(timeout=TIMEOUT_SECONDS)
        assert process.returncode != 0
    output = trainer(config, *settings).stdout.splitlines()
    assert output[0] == "going on from step 100"
    assert [line.split()[1] for line in output[1:]] == ["200/200"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [100, 200]


def test_only_a_later_second_sigint_ends_a_run_at_once() -> None:
    program = """if True:
        import os, signal, time
        from trainer.signals import StopSignals
        signals, asked = StopSignals(), []
        signals.call(lambda: asked.append(1))
        for _ in range(2):  # one press, which torchrun hands on
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGTERM)
        print(len(asked), signals.exit_status, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        print("not reached")
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "4 130\n", "")


def test_half_of_torchrun_s_variables_are_a_mistake(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = trainer(config)
    assert done.returncode == 2
    assert "WORLD_SIZE is set in the environment but not RANK" in done.stderr


def test_a_process_looks_for_garbage_once_at_its_end_and_closes_what_it_finds() -> None:
    program = """if True:
        import atexit, gc
        from trainer.ending import end_soon
        class File:
            def __del__(self):
                print("closed")
        gc.disable()
        file = File()
        file.itself = file
        del file
        atexit.register(lambda: print(gc.get_freeze_count() > 1000))
        end_soon()
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "closed\nTrue\n"


def test_a_signal_before_there_is_a_run_ends_the_process() -> None:
    program = """if True:
        import os, signal
        from trainer.signals import StopSignals
        StopSignals()
        os.kill(os.getpid(), signal.SIGTERM)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (143, b"")


def test_divergence_is_status_1(config: Path, tmp_path: Path) -> None:
    done = trainer(config, "loss_limit=0.1")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "diverged at step 1: a loss is not finite or past loss_limit\n"


def test_checkpoints_that_do_not_read_are_one_line_and_status_1(
    config: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "run" / "checkpoints" / "step-00000004"
    broken.mkdir(parents=True)
    done = trainer(config)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"trainer: .*step-00000004: cannot be read: .*\n", done.stderr)


def test_a_terminal_shows_a_bar_and_no_chatter(config: Path) -> None:
    terminal, end = pty.openpty()
    with subprocess.Popen(
        command(config, "steps=40"),
        stdin=end,
        stdout=end,
        stderr=end,
        env=os.environ | {"TERM": "xterm"},
    ) as process:
        os.close(end)
        shown = bytearray()
        while True:
            try:
                shown += os.read(terminal, 4096)
            except OSError:
                break
        assert process.wait(TIMEOUT_SECONDS) == 0
    os.close(terminal)
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", bytes(shown)).decode()
    assert "40/40" in text
    assert re.search(r"loss \d\.\d{3}  valid_ppl \d+\.\d\d  [\d,]+ tokens/s", text)
    assert "step 40/40  valid_ppl" in text
    assert "WARNING" not in text
    assert "Warning" not in text
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l"), "the cursor is back"


def test_chatter_goes_to_the_log_and_nowhere_else(tmp_path: Path) -> None:
    log = tmp_path / "run" / "log.txt"
    program = f"""if True:
        import os, pathlib, sys
        from trainer.terminal import Quiet
        print("start")
        with Quiet() as quiet:
            print("early")
            os.write(2, b"native\\n")  # as a library in C does
            quiet.keep_in(pathlib.Path({str(log)!r}))
            print("late", file=sys.stderr)
            quiet.output.write("shown\\n")
        print("end")
    """
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert (done.stdout, done.stderr) == ("start\nshown\nend\n", "")
    assert sorted(log.read_text().split()) == ["early", "early", "late", "late", "native", "native"]
