"""A population whose trainings are played by the test."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from hpo.control.attempts import TrialAttempt
from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.workers.pbt import make_explore
from tests.hpo.stage import Stage, ppl
from trainer.config.train import resolve

SPACE = {
    "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "layerdrop.p_init": {"type": "float", "low": 0.05, "high": 0.4},
}
TRAIN = {
    "steps": 300,
    "eval_every": 50,
    "keep_checkpoints": 4,
    "optim": {"schedule": "constant"},
    "layerdrop": {"policy": "static"},
}
STUDY: dict[str, Any] = {
    "space": SPACE,
    "train": resolve(TRAIN, "test").model_dump(mode="json"),
    "schedule": {"population": 4, "interval_steps": 100},
    "budget": {"trials": 20},
}


class Grown(Stage):
    """A stage for a population, whose trainings are played: a lower learning rate is better."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(f"sqlite:///{folder}/hpo.db", **{**STUDY, **changes})

    def controller(self, *observers: Any) -> Controller:
        lease = self.ledger.acquire(self.record)
        assert self.config.schedule is not None
        explore = make_explore(self.config.schedule, self.config.space, self.config.sampler.seed)
        return Controller(self.ledger, self.record, self.config, lease, "/runs", observers, explore)

    def run(self, seed: int = 0, kill_after: int | None = None) -> None:
        """Train to the end, in an order from `seed`, with a kill after so many messages each."""
        rng, said = random.Random(seed), 0
        controller, running = self.controller(), list[TrialAttempt]()
        while not controller.look_for_end():
            while (assignment := controller.next()) is not None:
                assert isinstance(assignment, TrialAttempt)
                running.append(assignment)
            at = rng.randrange(len(running))
            if not self.advance(controller, running[at]):
                running.pop(at)
            said += 1
            if kill_after and said % kill_after == 0:
                self.lapse()
                controller, running = self.controller(), []

    @staticmethod
    def advance(controller: Controller, assignment: TrialAttempt) -> bool:
        step = assignment.reported_step + 50
        kind = "finished" if step == 300 else "evaluated"
        message = Message(kind, step, ppl(1e3 * assignment.params["optim.lr"] + 300 / step))
        return controller.handle(assignment.number, assignment.attempt.number, message)

    def told(self) -> list[Any]:
        """Everything about the trials that does not depend on when it happened."""
        names = ("member", "parent", "parent_step", "reason")
        return [
            (t.number, t.state, t.params, t.values, t.intermediate_values,
             [t.user_attrs.get(name) for name in names])
            for t in self.trials
        ]  # fmt: skip
