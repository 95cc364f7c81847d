"""A learned schedule with real trainings: a population, and its winner's path from step 0."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.end_to_end.desk import Desk

SAME = ("step", "valid_ppl", "train_loss", "lr", "drop_probability")


@pytest.mark.timeout(400)
def test_the_winners_path_trains_from_step_0_as_it_did_in_the_population(
    desk: Desk, joined: tuple[str, str]
) -> None:
    file = desk.write_study(
        sampler={"name": "random", "seed": 10},  # 1.2 times the learning rate at both comparisons
        budget={"trials": 6},
        resources={"ranks": 1},
        schedule={"population": 2, "interval_steps": 20, "resample_probability": 0.0},
        train={
            "keep_checkpoints": 3,
            "layerdrop": {"policy": "static"},
            "optim": {"schedule": "constant", "warmup_steps": 5},
        },
        space={
            "optim.lr": {"type": "float", "low": 1e-4, "high": 2e-3, "log": True},
            "layerdrop.p_init": {"type": "float", "low": 0.05, "high": 0.4},
        },
    )
    assert "best of tiny" in desk.hpo("start", str(file), *joined)
    trials = desk.study().trials
    assert [trial.user_attrs.get("parent_step") for trial in trials] == [None, None, 20, 40]
    states = [trial.state for trial in trials]
    assert (states.count(TrialState.COMPLETE), states.count(TrialState.PRUNED)) == (2, 2)
    child = trials[3]
    firsts = [attempt["first_step"] for attempt in desk.json("show", "tiny", "3")["attempts"]]
    assert firsts == [40], "it began at its parent's checkpoint"
    assert list(child.intermediate_values) == [60]

    assert desk.hpo("schedule", "tiny", "-o", "learned.yaml") == "wrote learned.yaml\n"
    winner = desk.study().best_trial
    assert "parent" in winner.user_attrs, "a larger learning rate is better so early"
    command = ["-m", "trainer", "learned.yaml", "output_dir=whole"]
    subprocess.run(
        [sys.executable, *command],
        cwd=desk.folder,
        env={**desk.environment, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=200,
        stdout=subprocess.DEVNULL,
    )
    whole = measured(desk.folder / "whole")
    assert [metrics["step"] for metrics in whole] == [20, 40, 60]
    assert whole == measured(Path(winner.user_attrs["run_dir"])), "to the last bit"
    assert len({metrics["lr"] for metrics in whole}) > 1


def measured(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: json.loads(line)[name] for name in SAME} for line in lines]
