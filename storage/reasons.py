"""Why an attempt ended. Every end that is not plain success has exactly one."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """The typed reasons of the ledger, kept with the attempt and shown by the dashboard."""

    PRUNED = "pruned"  # the pruner said stop
    DIVERGED = "diverged"  # the loss turned NaN or infinite, or passed its limit
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_LOST = "worker_lost"  # a rank or node lost, a hang, an unreadable checkpoint
    BUSY = "busy"  # a dead controller's rank still trains in the run folder
    DISK = "disk"  # the run folder's disk is full, read-only or gone; the study pauses
    ERROR = "error"  # the code raised
    PARKED = "parked"  # waits at a rung, checkpointed, and goes on if it is among the best there
    EXPLOITED = "exploited"  # a new trial took its place in the population
    STOPPED = "stopped"  # by a person; the trial goes on at a resume
    OUTSIDE = "outside"  # another program has ended or deleted the trial, which stays as it is
    CONTROLLER_LOST = "controller_lost"  # the controller died; the trial is adopted


class TeacherState(StrEnum):
    """How far a study is with one of its teachers."""

    WAITING = "waiting"  # for its first attempt, or its next
    TRAINING = "training"
    TRAINED = "trained"  # by this study
    REUSED = "reused"  # it was trained already
    FAILED = "failed"  # the reason says why; a resume tries again
