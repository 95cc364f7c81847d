"""Kill -9 of the controller, of a rank, and a rank that hangs: nothing is lost, nothing is left."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

from tests import tensorboard_files
from tests.end_to_end.desk import Desk
from tests.trainer.processes import train

TRIALS = 8


@pytest.mark.timeout(600)
def test_a_study_whose_controller_is_killed_three_times_ends_with_exactly_its_trials(
    desk: Desk,
) -> None:
    file = desk.write_study(
        budget={"trials": TRIALS},
        resources={"ranks": 1, "concurrent_trials": 2},
        train={"steps": 200, "eval_every": 25},
        tracking={"tensorboard": True},
    )
    moments = random.Random(7)
    controller = desk.start("start", str(file))
    seen: dict[int, dict[str, Any]] = {}
    for kill in range(3):
        finished = len(seen_trials(desk, seen))
        # Some way into the work, so that there are trials to be adopted, then at a random moment.
        desk.wait_for(lambda done=finished: any_progress(desk, beyond=done), timeout=120)
        time.sleep(moments.uniform(0.0, 1.0))
        assert controller.poll() is None
        controller.kill()
        controller.communicate()
        if kill > 0:
            desk.lapse()
        controller = desk.start("resume", "tiny")
        if kill == 0:  # it finds a lease that could still be renewed
            assert "s to run: waiting for them" in controller.stderr.readline()
            desk.lapse()
        seen_trials(desk, seen)
    out, err = controller.communicate(timeout=300)
    assert controller.returncode == 0, out + err

    trials = desk.study().trials
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert all(trial.state is TrialState.COMPLETE for trial in trials)
    for number, params in seen.items():
        assert trials[number].params == params
    attempts = {t.number: desk.json("show", "tiny", str(t.number))["attempts"] for t in trials[:4]}
    adopted = [a for all_ in attempts.values() for a in all_[1:]]
    assert adopted
    assert any(attempt["first_step"] > 0 for attempt in adopted), "went on from a checkpoint"
    for trial in trials:
        assert desk.steps(trial.number) == list(range(25, 201, 25)), "without gap or repeat"
        assert sorted(trial.intermediate_values) == list(range(25, 201, 25))
    shown = tensorboard_files.steps(desk.folder / "runs/tiny/tensorboard")
    for steps in shown.values():
        assert steps == list(range(25, 201, 25))[: len(steps)], "without gap or repeat"
    # A kill may cut off the last half second of a trial that has just ended.
    assert sum(len(steps) < 8 for steps in shown.values()) <= 6
    desk.wait_for(lambda: not desk.ours(), timeout=90)


def seen_trials(desk: Desk, seen: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Add every trial's parameters to `seen`; none may have changed."""
    if (desk.folder / "hpo.db").exists():
        for trial in desk.study().trials:
            assert seen.setdefault(trial.number, trial.params) == trial.params
    return seen


def any_progress(desk: Desk, beyond: int) -> bool:
    """Whether a trial newer than those `beyond`, or one of the last two, was evaluated."""
    return any(desk.steps(number) for number in range(max(0, beyond - 1), TRIALS))


@pytest.mark.timeout(400)
def test_a_trial_whose_rank_is_killed_or_hangs_ends_as_if_undisturbed(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = desk.write_study(
        train={"steps": 150, "eval_every": 25},
        failures={"hang_seconds": 6, "max_retries": 1},
    )
    study = desk.start("start", str(file))
    for trial, disturbance in ((0, signal.SIGKILL), (1, signal.SIGSTOP)):
        # Written after the line in metrics.jsonl; a disk may take its time.
        kept = desk.folder / f"runs/tiny/trial-{trial:04d}/checkpoints/step-00000050"
        desk.wait_for(kept.is_dir)
        time.sleep(0.3)
        first_rank, second_rank = desk.ranks()
        (second_rank if trial == 0 else first_rank).send_signal(disturbance)
    out, err = study.communicate(timeout=200)
    assert study.returncode == 0, out + err

    for trial in desk.study().trials:
        shown = desk.json("show", "tiny", str(trial.number))
        assert trial.state is TrialState.COMPLETE
        assert [a["reason"] for a in shown["attempts"]] == ["worker_lost", None]
        assert shown["attempts"][1]["first_step"] >= 50
        assert sorted(trial.intermediate_values) == list(range(25, 151, 25))
    assert [trial.value for trial in desk.study().trials] == undisturbed(
        desk, tmp_path, monkeypatch
    )


def undisturbed(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The last valid_ppl of both trials' own configs, trained on two ranks without the service."""
    configs = []
    for number in range(2):
        file = desk.folder / "runs" / "tiny" / f"trial-{number:04d}" / "config.yaml"
        folder = str(tmp_path / f"undisturbed-{number}")
        configs.append({**yaml.safe_load(file.read_text()), "output_dir": folder})
    monkeypatch.setenv("HPO_CACHE_DIR", desk.environment["HPO_CACHE_DIR"])
    train(*configs, ranks=2)
    results = [Path(config["output_dir"], "result.json").read_text() for config in configs]
    return [json.loads(result)["valid_ppl"] for result in results]
