"""A study that trains its teacher first: killed in it, resumed, and followed by another study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

from tests.end_to_end.desk import TINY, Desk


def write_study(desk: Desk, **teacher: Any) -> Path:
    """TINY on one rank with a teacher of TINY's kind, changed as `teacher` says."""
    train = {key: value for key, value in TINY["train"].items() if key != "layerdrop"}
    (desk.folder / "teacher.yaml").write_text(yaml.safe_dump({**train, **teacher}))
    return desk.write_study(
        resources={"ranks": 1},
        train={
            "steps": 20,
            "distillation": {"enabled": True, "teacher": "teacher.yaml", "top_k": 8},
        },
    )


def teacher(desk: Desk, study: str) -> dict[str, Any]:
    """The study's one teacher, as `hpo status` has it."""
    (found,) = desk.json("status", study)["teachers"]
    return dict(found)


def evaluated(folder: str) -> list[int]:
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.timeout(300)
def test_a_teacher_is_trained_once_whatever_is_killed_and_whoever_needs_it(
    desk: Desk, joined: tuple[str, str]
) -> None:
    file = write_study(desk, steps=250, eval_every=25, seed=81)
    killed = desk.start("start", str(file))
    desk.wait_for((desk.folder / "runs" / "tiny" / "log.jsonl").exists)
    folder = desk.wait_for(lambda: desk.json("status", "tiny")["teachers"])[0]["folder"]
    desk.wait_for(lambda: len(list(Path(folder).glob("checkpoints/step-*"))) == 2)
    assert "trial" not in desk.kill(killed)
    left = teacher(desk, "tiny")
    assert (left["state"], left["steps"], left["attempts"]) == ("training", 250, 1)
    assert left["step"] >= 25

    out = desk.hpo("resume", "tiny", *joined)
    assert "study tiny is done" in out
    assert out.count("caching the teacher's 8 best of") == 1
    trained = teacher(desk, "tiny")
    assert (trained["state"], trained["step"], trained["attempts"]) == ("trained", 250, 2)
    assert evaluated(folder) == list(range(25, 251, 25)), "without gap or repeat"
    assert f"teacher {trained['teacher']}: trained, step 250/250" in desk.hpo("status", "tiny")
    trials = desk.study().trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert sum(trial.user_attrs["attempts"] for trial in trials) == 2
    config = yaml.safe_load((desk.folder / "runs/tiny/trial-0000/config.yaml").read_text())
    assert config["distillation"]["teacher"] == folder

    weights = Path(folder) / "checkpoints" / "step-00000250" / "state.safetensors"
    before = weights.stat().st_mtime_ns
    out = desk.hpo("start", str(file), "--name", "later", "--trials", "1", *joined)
    assert f"later: teacher {trained['teacher']} reused" in out
    assert "caching" not in out
    reused = teacher(desk, "later")
    assert (reused["state"], reused["attempts"], reused["seconds"]) == ("reused", 0, 0)
    assert weights.stat().st_mtime_ns == before


@pytest.mark.timeout(120)
def test_a_teacher_that_fails_ends_its_study_with_status_1_in_one_line(
    desk: Desk, joined: tuple[str, str]
) -> None:
    message = desk.hpo("start", str(write_study(desk, loss_limit=0.1)), *joined, status=1)
    failed = teacher(desk, "tiny")
    key = failed["teacher"]
    assert message == f"study tiny: no trial completed: its teacher {key} failed (diverged)\n"
    assert (failed["state"], failed["reason"]) == ("failed", "diverged")
    assert desk.study().trials == []
