"""A study whose terminal is closed, or whose output nobody reads any more."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from optuna.trial import TrialState

from storage import Ledger, Reason
from tests.end_to_end.desk import Desk

HPO = str(Path(sys.executable).parent / "hpo")


def checkpointed(desk: Desk, study: str) -> bool:
    return any((desk.folder / f"runs/{study}/trial-0000/checkpoints").glob("step-*"))


@pytest.mark.parametrize("ignored", [False, True], ids=["closed", "closed under nohup"])
def test_a_closed_terminal_checkpoints_a_study_unless_it_is_told_to_stay(
    desk: Desk, joined: tuple[str, str], ignored: bool
) -> None:
    study = desk.write_study(
        resources={"ranks": 1},
        train={"steps": 200 if ignored else 100_000, "eval_every": 20},
        budget={"trials": 1},
    )
    start = [HPO, "start", str(study), *(joined if ignored else ())]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(desk.folder)
        command = ["nohup", *start] if ignored else start
        os.execvpe(command[0], command, {**desk.environment, "TERM": "xterm"})  # noqa: S606
    deadline = time.monotonic() + 200
    os.set_blocking(terminal, False)
    while not checkpointed(desk, "tiny") and time.monotonic() < deadline:
        time.sleep(0.1)
        with suppress(OSError):  # nothing to read, or `nohup` has closed it
            os.read(terminal, 65_536)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    ledger = Ledger.open(f"sqlite:///{desk.folder}/hpo.db")
    (trial,) = ledger.trials(ledger.study("tiny"), *TrialState)
    (attempt,) = ledger.trial_attempts(trial._trial_id)
    if ignored:
        assert (os.waitstatus_to_exitcode(status), trial.state) == (0, TrialState.COMPLETE)
        return
    assert os.waitstatus_to_exitcode(status) == 130
    assert (trial.state, attempt.reason) == (TrialState.RUNNING, Reason.STOPPED)
    assert attempt.last_step
    kept = desk.folder / f"runs/tiny/trial-0000/checkpoints/step-{attempt.last_step:08}"
    assert kept.is_dir()
    assert [c.alive for c in ledger.controllers(ledger.study("tiny"))] == [False]


@pytest.mark.parametrize("output", ["head -1", "(exec 0<&-)"])
def test_a_study_goes_on_when_its_output_is_closed_or_full(
    desk: Desk, joined: tuple[str, str], output: str
) -> None:
    study = desk.write_study(resources={"ranks": 1}, train={"steps": 40, "eval_every": 20})
    done = bash(desk, f"{HPO} start {study} {' '.join(joined)} | {output}; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert [trial.state for trial in desk.study("tiny").trials] == [TrialState.COMPLETE] * 2
    assert "trial 1" in (desk.folder / "runs/tiny/log.jsonl").read_text()


def test_a_reading_command_ends_quietly_where_nobody_reads(desk: Desk) -> None:
    Ledger.open(f"sqlite:///{desk.folder}/hpo.db", create=True)
    done = bash(desk, f"{HPO} list --json | (exec 0<&-); echo ${{PIPESTATUS[0]}}")
    assert (done.stdout.strip(), done.stderr) == ("1", "")


def test_a_reading_command_says_that_its_output_could_not_be_written(desk: Desk) -> None:
    Ledger.open(f"sqlite:///{desk.folder}/hpo.db", create=True)
    done = bash(desk, f"{HPO} list --json > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "hpo: standard output: no space left on device\n"


def bash(desk: Desk, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script],
        cwd=desk.folder,
        env=desk.environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
