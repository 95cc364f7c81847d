"""The small sections of a study file: its budget, what a trial takes, and how much may fail."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from trainer.config.sections import Count, Positive
from trainer.config.settings import Section


class Budget(Section):
    """When the study is done: whichever is reached first."""

    trials: Annotated[int, Field(ge=1, le=10**9)] = 20  # in all, pruned and failed ones too
    hours: Positive | None = None  # the controllers' wall-clock time, over all resumes
    device_hours: Positive | None = None  # the time of all ranks of all attempts


def raised(budget: Budget, attributes: Mapping[str, Any]) -> Budget:
    """Return the budget with the hours that `hpo resume` gave since: the study's attributes."""
    given = {of: attributes.get(f"budget_{of}") for of in HOURS}
    # Any program may write an attribute: what is no number changes nothing.
    update = {of: most for of, most in given.items() if isinstance(most, (int, float))}
    return budget.model_copy(update=update)


HOURS = ("hours", "device_hours")  # of a budget


class Resources(Section):
    """What one trial takes, and how many run at a time."""

    ranks: Count = 1  # processes that train one trial together
    cpus_per_rank: Count = 1  # cores, each rank's own
    gpus_per_rank: Annotated[int, Field(ge=0)] = 0  # 0: on the CPU
    concurrent_trials: Count = 1  # trials at a time, by each controller


class Failures(Section):
    """How much may go wrong before the service gives up."""

    max_retries: Annotated[int, Field(ge=0)] = 2  # further attempts after a trial's worker was lost
    max_failures: Count = 3  # failed trials in a row that stop the study
    hang_seconds: Positive = 600.0  # a gang without any progress for so long is killed
    # the database or the disk may be away for so long; then the service leaves
    outage_seconds: Positive = 600.0


def local_cpus() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
