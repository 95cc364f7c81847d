"""A study on a real ledger whose attempts are played by the test, without Ray."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import optuna

from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.study.config import StudyConfig
from storage import Ledger, TeacherRecord
from tests.leases import lapse
from trainer.config.train import TrainConfig

STUDY: dict[str, Any] = {
    "study": "played",
    "sampler": {"name": "tpe", "seed": 3, "startup_trials": 3},
    "budget": {"trials": 4},
    "train": TrainConfig(steps=300).model_dump(mode="json"),
    "space": {
        "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "layerdrop.policy": {"type": "categorical", "choices": ["static", "linear"]},
    },
}


class Watcher:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def begin(
        self, trial: int, attempt: int, config: dict[str, Any], params: dict[str, Any]
    ) -> None:
        self.seen.append(("begin", trial, attempt))

    def report(self, trial: int, step: int, metrics: dict[str, float]) -> None:
        self.seen.append(("report", trial, step))

    def end(self, trial: int, state: str, reason: str | None) -> None:
        self.seen.append(("end", trial, state, reason))

    def teacher(self, teacher: TeacherRecord) -> None:
        self.seen.append(("teacher", teacher.state.value, teacher.step, teacher.reason))


class Stage:
    """One study in one ledger, and as many controllers after each other as a test wants."""

    def __init__(self, url: str, teachers: Sequence[TeacherRecord] = (), **changes: Any) -> None:
        self.config = StudyConfig.model_validate({**copy.deepcopy(STUDY), **changes})
        self.url = url
        self.ledger = Ledger.open(url, create=True)
        directions = [objective.optuna_direction for objective in self.config.objectives]
        names = [objective.metric for objective in self.config.objectives]
        document, budget = self.config.to_document(), self.config.budget.trials
        self.record = self.ledger.create_study(
            "played", directions, names, document, budget, teachers
        )

    def controller(self, *observers: Any) -> Controller:
        lease = self.ledger.acquire(self.record)
        return Controller(self.ledger, self.record, self.config, lease, "/runs", observers)

    def lapse(self) -> None:
        """The controllers are gone, and for so long that their leases have run out."""
        lapse(self.ledger)

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return optuna.load_study(study_name=self.record.name, storage=self.ledger.storage).trials


def ppl(value: float) -> dict[str, float]:
    return {"valid_ppl": value, "step_seconds": 0.1}


def play(controller: Controller, *messages: Message) -> int:
    """Run one attempt that says `messages`; the trial's number."""
    assignment = controller.next()
    assert assignment is not None
    for message in messages:
        controller.handle(assignment.number, assignment.attempt.number, message)
    return assignment.number


def finish(controller: Controller, value: float = 5.0) -> int:
    return play(controller, Message("finished", 300, ppl(value)))
