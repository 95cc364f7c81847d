"""Parked halving with real trainings: a kill -9 while trials are parked, and no step twice."""

from __future__ import annotations

from collections import Counter

import pytest

from hpo.reading.views import trial_list
from storage import Ledger
from storage.database import has_ledger
from tests.end_to_end.desk import Desk


@pytest.mark.timeout(400)
def test_parked_trials_survive_a_kill_and_no_step_is_trained_twice(
    desk: Desk, joined: tuple[str, str]
) -> None:
    file = desk.write_study(
        budget={"trials": 8},
        resources={"ranks": 1},
        pruner={"name": "parked_halving", "min_steps": 20, "reduction_factor": 2},
        train={"steps": 80, "eval_every": 20},
    )
    controller = desk.start("start", str(file))
    desk.wait_for(lambda: len(parked(desk)) >= 2, timeout=200)
    desk.kill(controller)
    kept = parked(desk)
    assert len(kept) >= 2
    shown = desk.json("trials", "tiny")
    assert {t["trial"] for t in shown if t["reason"] == "parked"} == set(kept)
    assert "study tiny is done" in desk.hpo("resume", "tiny", *joined)

    trials = desk.study().trials
    states = Counter(trial.state.name for trial in trials)
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert states["COMPLETE"] >= 1
    trained = 0
    for trial in trials:
        attempts = desk.json("show", "tiny", str(trial.number))["attempts"]
        steps = desk.steps(trial.number)
        assert steps == list(range(20, steps[-1] + 1, 20)), "each evaluation once, none left out"
        parts = [(a["first_step"], a["last_step"]) for a in attempts if a["first_step"] is not None]
        if trial.number in kept:
            assert [first for first, _ in parts] == [0, *(last for _, last in parts[:-1])]
        trained += steps[-1]
    assert trained < 0.75 * 8 * 80, "about half of the trials go on from each rung"


def parked(desk: Desk) -> list[int]:
    """Numbers of the trials that wait at a rung."""
    database = desk.folder / "hpo.db"
    if not has_ledger(f"sqlite:///{database}"):
        return []
    ledger = Ledger.open(f"sqlite:///{database}")
    waiting = [t for t in trial_list(ledger, "tiny") if t["reason"] == "parked"]
    return [trial["trial"] for trial in waiting if trial["state"] == "RUNNING"]
