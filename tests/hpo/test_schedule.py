"""Learned schedules: a path through the ledger trains from step 0 as it trained in its trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.reading.learned_schedule import Segment, learned_schedule, path_to, points
from tests.hpo.grown import Grown
from tests.hpo.stage import Stage, finish
from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig, load, resolve
from trainer.engine.schedule import learning_rate
from trainer.model.layerdrop import make_policy

SEGMENTS = st.lists(
    st.tuples(st.integers(1, 60), st.floats(1e-5, 1.0), st.floats(0.0, 0.9)), min_size=1, max_size=6
)


def schedules(config: TrainConfig) -> list[tuple[float, float]]:
    """Learning rate and drop probability of every step."""
    policy, steps = make_policy(config), config.steps
    return [
        (learning_rate(config.optim, steps, step), policy.drop_probability(1, step))
        for step in range(steps)
    ]


def level(steps: int, lr: float, p: float, warmup: int) -> TrainConfig:
    """A trial's train config: one learning rate and drop probability throughout."""
    optim = {"schedule": "constant", "lr": lr, "warmup_steps": warmup}
    drop = {"policy": "static", "p_init": p}
    return resolve({"steps": steps, "optim": optim, "layerdrop": drop}, "test")


@given(SEGMENTS, st.integers(0, 70))
def test_a_path_has_each_trials_values_at_each_of_its_steps_to_the_last_bit(
    segments: list[tuple[int, float, float]], warmup: int
) -> None:
    steps = sum(length for length, _, _ in segments)
    path, expected = [], []
    for number, (length, lr, p) in enumerate(segments):
        first = len(expected)
        path.append(Segment(first, number, {"optim.lr": lr, "layerdrop.p_init": p}))
        expected += schedules(level(steps, lr, p, warmup))[first : first + length]
    optim = {
        "schedule": "piecewise",
        "points": points(path, "optim.lr", steps),
        "warmup_steps": warmup,
    }
    drop = {"policy": "piecewise", "points": points(path, "layerdrop.p_init", steps)}
    whole = resolve({"steps": steps, "optim": optim, "layerdrop": drop}, "test")
    assert schedules(whole) == expected


def test_the_best_trials_path_is_written_from_the_ledger_alone(tmp_path: Path) -> None:
    stage = Grown(tmp_path)
    with pytest.raises(ConfigError, match="study played: no trial is complete and feasible"):
        learned_schedule(stage.ledger, "played")
    stage.run()
    child = stage.trials[-1]
    parent, step = child.user_attrs["parent"], child.user_attrs["parent_step"]
    path = path_to(stage.trials, child.number)
    assert [(s.trial, s.first_step) for s in path][-2:] == [
        (parent, stage.trials[parent].user_attrs.get("parent_step", 0)),
        (child.number, step),
    ]
    assert path[0].first_step == 0
    best = min((t for t in stage.trials if t.values), key=lambda t: t.values[0])
    file = tmp_path / "schedule.yaml"
    file.write_text(learned_schedule(stage.ledger, "played"))
    written = load(file)
    assert file.read_text().startswith("# Learned by study played: trial ")
    assert (written.steps, written.fork) == (300, None)
    last = best.params["optim.lr"], best.params["layerdrop.p_init"]
    assert schedules(written)[-1] == last


def test_a_study_without_a_schedule_has_none_to_write(tmp_path: Path) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db")
    finish(stage.controller())
    with pytest.raises(ConfigError, match="study played: learns no schedule"):
        learned_schedule(stage.ledger, "played")
