"""The studies that are simulated: one for each part of the controller with a life of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hpo.search.population import Exploit, Member
from hpo.study.config import StudyConfig
from storage import Point, TeacherRecord
from tests.simulation.controllers import NAME
from trainer.config.train import TrainConfig

TEACHER = "0123456789abcdef"


@dataclass(frozen=True)
class Scenario:
    """A study, and who runs it."""

    name: str
    changes: dict[str, Any]  # to the study file below
    most_machines: int = 3
    joins: bool = True  # whether several machines run it at a time
    points: tuple[Point, ...] = ()
    taught: bool = False
    kept: int = 2  # checkpoints
    steps: int = 200
    budgets: tuple[int, ...] = (1, 2, 2, 2, 3)  # one of them: trials
    depths: bool = False

    @cached_property
    def config(self) -> StudyConfig:
        """The study file."""
        return StudyConfig.model_validate(
            {
                "study": NAME,
                "sampler": {"name": "random", "seed": 3},
                "train": TrainConfig(steps=self.steps, keep_checkpoints=self.kept).model_dump(
                    mode="json"
                ),
                "space": {
                    "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
                    "layerdrop.p_init": {"type": "float", "low": 0.05, "high": 0.4},
                },
                "failures": {"hang_seconds": 60},
                **self.changes,
            }
        )

    @cached_property
    def teachers(self) -> list[TeacherRecord]:
        """What is trained before the first trial."""
        if not self.taught:
            return []
        config = TrainConfig(steps=self.steps, seed=7)
        return [
            TeacherRecord(TEACHER, f"/simulated/teachers/{TEACHER}", config.to_yaml(), self.steps)
        ]


def exploit(step: int, members: Sequence[Member]) -> list[Exploit]:
    """The worst member's place is taken by one that goes on from the best."""
    alive = [member for member in members if member.value < float("inf")]
    if not alive:
        return []
    best = min(alive, key=lambda member: member.value)
    worst = max(members, key=lambda member: member.value)
    if best is worst:
        return []
    params = {**best.params, "optim.lr": min(best.params["optim.lr"] * 1.1, 1e-2)}
    return [Exploit(worst.number, best.number, params)]


_TWO = [
    {"metric": "valid_ppl", "direction": "minimize"},
    {"metric": "step_seconds", "direction": "minimize"},
]

SCENARIOS = [
    Scenario("plain", {}, steps=300),
    Scenario("places", {"resources": {"concurrent_trials": 2}, "budget": {"trials": 3}}),
    Scenario(
        "median",
        {"pruner": {"name": "median", "startup_trials": 1}},
        budgets=(3, 4),
    ),
    Scenario(
        "halving",
        {
            "pruner": {"name": "parked_halving", "min_steps": 100, "reduction_factor": 2},
            "resources": {"concurrent_trials": 2},
        },
        steps=300,
        budgets=(3, 4),
    ),
    Scenario(
        "population",
        {
            "schedule": {"population": 2, "interval_steps": 100},
            "resources": {"concurrent_trials": 2},
        },
        most_machines=2,
        budgets=(3, 4),
        joins=False,
        kept=3,
        steps=300,
    ),
    Scenario("repeats", {"repeats": 2}, budgets=(1, 2)),
    Scenario("taught", {}, taught=True),
    Scenario("depths", {}, depths=True),
    Scenario(
        "constrained",
        {"constraints": [{"metric": "valid_ppl", "max": 4.5}]},
    ),
    Scenario("objectives", {"objectives": _TWO}),
    Scenario(
        "points",
        {"resources": {"concurrent_trials": 2}},
        points=tuple(Point({"optim.lr": lr}, {"by": "hand"}) for lr in (1e-3, 2e-3)),
    ),
    Scenario("tpe", {"sampler": {"name": "tpe", "seed": 3, "startup_trials": 2}}, budgets=(3, 4)),
]
