"""What a gang is given to do: an `Assignment`, which travels to it as a `Message` travels back.

Workers import this module, so it imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hpo.control.messages import Job
from hpo.study.functions import OwnFunction
from hpo.study.sections import Resources

if TYPE_CHECKING:
    from hpo.study.config import StudyConfig


@dataclass(frozen=True)
class Assignment:
    """One attempt at a trial, or at training a teacher, for a gang to execute."""

    job: Job
    label: str  # the job as people call it: `trial 7`
    attempt: int  # its number among the job's attempts, from 1
    document: dict[str, Any]  # the train config
    studies: tuple[str, ...]  # uid of its study, then of those that this is a copy of
    reported_step: int  # evaluations up to this optimizer step need no report
    own_function: OwnFunction | None  # trains, where the study has a training function of its own
    resources: Resources  # of the gang
    hang_seconds: float  # without any progress, after which the gang is killed

    @property
    def steps(self) -> int:
        """The optimizer steps of the whole training."""
        steps: int = self.document["steps"]
        return steps


class Assigned(Protocol):
    """An attempt that a controller has begun, of whatever job."""

    @property
    def assignment(self) -> Assignment:
        """What its gang is told."""


def make_assignment(
    config: StudyConfig,
    job: Job,
    label: str,
    attempt: int,
    document: dict[str, Any],
    reported_step: int,
    studies: tuple[str, ...] = (),
    own: OwnFunction | None = None,
) -> Assignment:
    """Return an assignment for a gang as the study asks for it."""
    resources, seconds = config.resources, config.failures.hang_seconds
    return Assignment(
        job, label, attempt, document, studies, reported_step, own, resources, seconds
    )
