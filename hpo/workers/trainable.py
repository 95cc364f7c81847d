"""A gang as a Ray Tune Trainable, in an actor of its own. Each Tune step returns one message.

This module imports neither the controller nor its libraries: so the actor is there a second sooner.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from hpo.control.assignment import Assignment
from hpo.control.messages import Message
from hpo.workers.gang import Gang, GangFailure

if TYPE_CHECKING:
    from trainer.run import Report

logger = logging.getLogger("hpo.trainable")


class GangTrainable(tune.Trainable):  # type: ignore[misc]
    """One gang, which Tune keeps from trial to trial. A step is one message to the controller."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare for the first trial of this actor, which Tune has just made."""
        self._gang: Gang | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial from Tune."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return the attempt's next message."""
        try:
            message = self._next()
        except GangFailure as failure:
            self._gang, self._started = None, False
            if failure.kind == "worker_lost":
                raise  # Tune then finds the next attempt another place: a node may be gone
            message = Message(failure.kind, detail=failure.detail)
        return {"message": message, "done": message.kind != "evaluated"}

    def cleanup(self) -> None:
        """Kill the gang: Tune lets this actor go."""
        if self._gang is not None:
            self._gang.kill()

    def _begin(self, config: dict[str, Any]) -> None:
        self._assignment: Assignment = config["assignment"]
        self._started = False
        self._backlog: deque[Message] = deque()

    def _next(self) -> Message:
        if not self._started:
            self._start()
        if self._backlog:
            return self._backlog.popleft()
        assert self._gang is not None
        report = self._gang.advance()
        if report.kind != "evaluated":
            self._free()
        return self._message(report)

    def _start(self) -> None:
        self._free()  # a pruned trial's run is still there
        assignment = self._assignment
        if self._gang is None:
            place = ray.util.get_current_placement_group()
            self._gang = Gang(place, assignment.resources, assignment.hang_seconds)
        self._first_step, history = self._gang.start(assignment)
        self._started = True
        # Evaluations that were checkpointed, but whose report a killed controller never wrote.
        self._backlog.extend(
            self._message(report)
            for report in history
            if assignment.reported_step < report.step < assignment.steps
        )

    def _message(self, report: Report) -> Message:
        metrics = {name: value for name, value in report.metrics.items() if name != "step"}
        front = report.depth_front
        return Message(report.kind, report.step, metrics, self._first_step, depth_front=front)

    def _free(self) -> None:
        # A gang that cannot be freed is of no trial's making: the next one builds another.
        if self._gang is not None:
            try:
                self._gang.close()
            except GangFailure as failure:
                logger.warning("the gang was lost between trials: %s", failure.detail)
                self._gang = None
