"""What readers of the ledger get: plain values, detached from the database."""

from __future__ import annotations

from dataclasses import dataclass

from storage.reasons import Reason, TeacherState


@dataclass(frozen=True)
class StudyRecord:
    """One study as the ledger keeps it beside Optuna's tables."""

    study_id: int
    uid: str
    name: str
    document: str  # the resolved study file, YAML
    created_at: float
    budget_trials: int
    reserved_trials: int
    stop_requested_at: float | None  # when the controllers of that time were asked to stop
    runs: str | None  # where its run folders are: an absolute folder or a URL; None: not known


@dataclass(frozen=True)
class Controller:
    """One controller process of a study. Times are seconds by the database's clock."""

    controller_id: int
    host: str
    pid: int
    state: str  # active, released, lost
    started_at: float
    seen_at: float
    expires_in: float  # seconds left of the lease; negative when it has run out

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def alive(self) -> bool:
        """Whether it holds a lease that has not run out."""
        return self.state == "active" and self.expires_in > 0


@dataclass(frozen=True)
class Waiting:
    """A RUNNING trial that any controller of its study may claim."""

    trial_id: int
    number: int
    due_in: float  # seconds until it may be claimed; negative when it may
    parked: bool  # may not be claimed until it is promoted
    due_at: float  # by the database's clock; with `parked` it tells this waiting from a later one


@dataclass(frozen=True)
class Attempt:
    """One execution of a trial by one gang."""

    attempt_id: int
    trial_id: int
    number: int
    controller_id: int
    devices: int
    started_at: float
    ended_at: float | None
    first_step: int | None
    last_step: int | None
    reason: Reason | None
    detail: str | None

    @property
    def device_seconds(self) -> float:
        """Cost: seconds times ranks; 0 while the attempt is open."""
        return (self.ended_at - self.started_at) * self.devices if self.ended_at else 0.0


@dataclass(frozen=True)
class TeacherRecord:
    """A study's teacher, and how far the study is with training it."""

    key: str
    folder: str  # of its run
    config: str  # its train config, YAML
    steps: int
    state: TeacherState = TeacherState.WAITING
    step: int = 0  # last optimizer step that was reported
    attempts: int = 0
    seconds: float = 0.0  # wall-clock time of the attempts that have ended
    reason: Reason | None = None  # why the last attempt ended
    detail: str | None = None
