"""Our own tables, beside Optuna's in the same database. Optuna's are never changed.

Times are seconds since 1970 by the database's own clock, so that all machines agree on leases.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The metadata of the `hpo_` tables."""


class StudyRow(Base):
    """What Optuna has no place for: a study's file, its budget, and a request to stop it."""

    __tablename__ = "hpo_studies"

    study_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    uid: Mapped[str] = mapped_column(String(32), unique=True)
    document: Mapped[str] = mapped_column(Text)  # the resolved study file, YAML
    document_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    budget_trials: Mapped[int]
    reserved_trials: Mapped[int] = mapped_column(default=0)
    stop_requested_at: Mapped[float | None]
    runs: Mapped[str | None] = mapped_column(Text)  # where its run folders are: absolute, or a URL


class ControllerRow(Base):
    """One controller process and its lease on one study."""

    __tablename__ = "hpo_controllers"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(index=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))  # active, released, lost
    started_at: Mapped[float]
    seen_at: Mapped[float]
    expires_at: Mapped[float]
    # since when it has renewed its lease without a gap: who could not, knows nothing of others
    steady_since: Mapped[float | None]
    # known to the lease's holder alone: SQLite gives the ids of deleted rows out again
    token: Mapped[str | None] = mapped_column(String(32))


class AttemptRow(Base):
    """One execution of a trial by one gang; open while `ended_at` is null."""

    __tablename__ = "hpo_attempts"
    __table_args__ = (
        UniqueConstraint("trial_id", "number", name="uq_hpo_attempts_trial_number"),
        Index("ix_hpo_attempts_controller", "controller_id"),
        Index(
            "ix_hpo_attempts_open",
            "controller_id",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    trial_id: Mapped[int]
    number: Mapped[int]  # 1-based
    controller_id: Mapped[int] = mapped_column(ForeignKey("hpo_controllers.id"))
    devices: Mapped[int]  # ranks, each on a GPU or on CPU cores of its own
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    first_step: Mapped[int | None]  # optimizer step it started or resumed from
    last_step: Mapped[int | None]  # last optimizer step that was reported
    reason: Mapped[str | None] = mapped_column(String(32))
    detail: Mapped[str | None] = mapped_column(Text)  # a traceback, for instance


class WaitingRow(Base):
    """A RUNNING trial that nobody executes: it waits for its next attempt."""

    __tablename__ = "hpo_waiting"

    trial_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    due_at: Mapped[float]  # its attempt may not begin before
    parked: Mapped[bool]  # its attempt may not begin until it is promoted


class TeacherRow(Base):
    """A run that teaches a study's trials, and how far this study is with training it."""

    __tablename__ = "hpo_teachers"

    study_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)  # digest of its config and data
    folder: Mapped[str] = mapped_column(Text)
    config: Mapped[str] = mapped_column(Text)  # the resolved train config, YAML
    steps: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    step: Mapped[int]  # last optimizer step that was reported
    attempts: Mapped[int]
    seconds: Mapped[float]  # wall-clock time of the attempts that have ended
    began_at: Mapped[float | None]  # of the open attempt; null if none is open
    controller_id: Mapped[int | None] = mapped_column(ForeignKey("hpo_controllers.id"))
    reason: Mapped[str | None] = mapped_column(String(32))  # why the last attempt ended
    detail: Mapped[str | None] = mapped_column(Text)


class MetricsRow(Base):
    """All metrics of a trial at one optimizer step."""

    __tablename__ = "hpo_metrics"

    trial_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("hpo_attempts.id"))
    at: Mapped[float]
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)


class ResultRow(Base):
    """The last metrics of one training of a trial that is trained under several seeds."""

    __tablename__ = "hpo_results"

    trial_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    repeat: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # from 0
    attempt_id: Mapped[int] = mapped_column(ForeignKey("hpo_attempts.id"))
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)


class DepthPointRow(Base):
    """How good a trial's model is at one depth, without retraining, at one optimizer step."""

    __tablename__ = "hpo_depth_points"

    trial_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    depth: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # layers kept
    search: Mapped[str] = mapped_column(String(16), primary_key=True)  # how they were found
    layers: Mapped[list[int]] = mapped_column(JSON)  # which they are, 1-based
    valid_ppl: Mapped[float]
    parameters: Mapped[int] = mapped_column(BigInteger)
    seconds_per_token: Mapped[float]  # of a forward pass
