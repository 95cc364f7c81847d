"""Reading the ledger: studies, controllers, attempts, metrics. Never writes."""

from __future__ import annotations

import difflib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, cast

import sqlalchemy as sa
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.storages._rdb.models import StudyUserAttributeModel, TrialModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Engine
from sqlalchemy.orm import scoped_session

from storage.database import clock
from storage.errors import StudyNotFound
from storage.models import (
    AttemptRow,
    ControllerRow,
    DepthPointRow,
    MetricsRow,
    ResultRow,
    StudyRow,
    TeacherRow,
    WaitingRow,
)
from storage.names import check_study_name, is_study_name
from storage.reasons import Reason
from storage.records import Attempt, Controller, StudyRecord, TeacherRecord, Waiting
from storage.session import JoinedSession
from storage.teachers import teacher_record
from storage.trials import newer_or_named

COPY_OF = "hpo:copy_of"  # system attribute of a study: the uids of those that it is a copy of
STUDIES = sa.table("studies", sa.column("study_id"), sa.column("study_name"))
TRIALS = sa.table("trials", *map(sa.column, ("trial_id", "study_id", "number", "state")))


class Reader:
    """The reading half of the ledger.

    `storage` is what Optuna is given, and `url` the address without its password. The modules of
    `storage/` use `engine`, and `sessions()` for the session of the calling thread.
    """

    def __init__(self, backend: RDBStorage, url: str) -> None:
        self._backend = backend
        self.storage: BaseStorage = get_storage(backend)
        self.url = url
        self.sessions = cast(scoped_session[JoinedSession], backend.scoped_session)
        self.engine: Engine = backend.engine

    @property
    def on_a_server(self) -> bool:
        """Whether controllers on several machines can write; a SQLite file is for one machine."""
        return self.engine.dialect.name != "sqlite"

    def studies(self) -> list[StudyRecord]:
        """Return every study that this program made, oldest first."""
        return self._studies(sa.true())

    def study(self, name: str) -> StudyRecord:
        """Return the study called `name`. Raises StudyNotFound with the nearest names."""
        check_study_name(name)
        if found := self._studies(STUDIES.c.study_name == name):
            return found[0]
        if self._scalars(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)):
            raise StudyNotFound(
                f"{self.url}: study {name} was made by another program, as a copy perhaps, and has "
                "no study file; give a new study another name"
            )
        names = [study.name for study in self.studies()]
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[-3:]
        hint = f"; did you mean {' or '.join(close)}?" if close else "; it holds no study yet"
        raise StudyNotFound(f"{self.url}: no study called {name}{hint}")

    def uids(self, study: StudyRecord) -> tuple[str, ...]:
        """Return the study's uid, then those of the studies that it is a copy of, newest first."""
        kept = self.storage.get_study_system_attrs(study.study_id)
        return study.uid, *kept.get(COPY_OF, [])

    def study_of(
        self, *, study_id: int | None = None, trial_id: int | None = None
    ) -> StudyRecord | None:
        """Return the study with that id, or of that trial; None if this program did not make it."""
        if study_id is None:
            of_trial = sa.select(TRIALS.c.study_id).where(TRIALS.c.trial_id == trial_id)
            study_id = next(iter(self._scalars(of_trial)), None)
        return next(iter(self._studies(STUDIES.c.study_id == study_id)), None)

    def attributes(self, study: StudyRecord) -> dict[str, Any]:
        """Return Optuna's user attributes of the study; none if another program has deleted it."""
        rows = self._rows(
            sa.select(StudyUserAttributeModel.key, StudyUserAttributeModel.value_json).where(
                StudyUserAttributeModel.study_id == study.study_id
            )
        )
        return {key: json.loads(value) for key, value in rows}

    def stop_requested_at(self, study: StudyRecord) -> float | None:
        """Return when somebody last asked to stop the study, by the ledger's clock."""
        asked = sa.select(StudyRow.stop_requested_at).where(StudyRow.study_id == study.study_id)
        return next(iter(self._scalars(asked)), None)

    def controllers(self, study: StudyRecord) -> list[Controller]:
        """Return every controller that the study has had, oldest first."""
        row = ControllerRow
        expires_in = row.expires_at - clock(self.engine.dialect.name)
        rows = self._rows(
            sa.select(row.id, row.host, row.pid, row.state, row.started_at, row.seen_at, expires_in)
            .where(row.study_id == study.study_id)
            .order_by(row.id)
        )
        return [Controller(*row) for row in rows]

    def attempts(self, study: StudyRecord) -> dict[int, list[Attempt]]:
        """Return every attempt of every trial of the study, by trial id, in order."""
        found: dict[int, list[Attempt]] = defaultdict(list)
        for row in self._scalars(
            sa.select(AttemptRow)
            .join(TRIALS, TRIALS.c.trial_id == AttemptRow.trial_id)
            .where(TRIALS.c.study_id == study.study_id)
            .order_by(AttemptRow.trial_id, AttemptRow.number)
        ):
            found[row.trial_id].append(attempt_record(row))
        return dict(found)

    def trial_attempts(self, trial_id: int) -> list[Attempt]:
        """Return every attempt of one trial, in order."""
        wanted = sa.select(AttemptRow).where(AttemptRow.trial_id == trial_id)
        return [attempt_record(row) for row in self._scalars(wanted.order_by(AttemptRow.number))]

    def waiting(self, study: StudyRecord) -> list[Waiting]:
        """Return the RUNNING trials that wait for their next attempt, oldest first."""
        row = WaitingRow
        due_in = row.due_at - clock(self.engine.dialect.name)
        rows = self._rows(
            sa.select(row.trial_id, TrialModel.number, due_in, row.parked, row.due_at)
            .join(TrialModel, TrialModel.trial_id == row.trial_id)
            .where(TrialModel.study_id == study.study_id, TrialModel.state == TrialState.RUNNING)
            .order_by(row.trial_id)
        )
        return [Waiting(*row) for row in rows]

    def open_attempts(self, study: StudyRecord) -> list[Attempt]:
        """Return the attempts that the study's active controllers are executing."""
        rows = self._scalars(
            sa.select(AttemptRow)
            .join(ControllerRow, ControllerRow.id == AttemptRow.controller_id)
            .where(ControllerRow.study_id == study.study_id, ControllerRow.state == "active")
            .where(AttemptRow.ended_at.is_(None))
            .order_by(AttemptRow.id)
        )
        return [attempt_record(row) for row in rows]

    def has_unfinished(self, study: StudyRecord) -> bool:
        """Return whether a trial of the study waits for its next attempt, or is being executed.

        One statement sees one state of the database. Of two, the first would miss a trial that
        waits, and the second one that a controller has claimed or let go of in between.
        """
        waits = (
            sa.select(WaitingRow.trial_id)
            .join(TrialModel, TrialModel.trial_id == WaitingRow.trial_id)
            .where(TrialModel.study_id == study.study_id, TrialModel.state == TrialState.RUNNING)
        )
        runs = (
            sa.select(AttemptRow.id)
            .join(ControllerRow, ControllerRow.id == AttemptRow.controller_id)
            .where(ControllerRow.study_id == study.study_id, ControllerRow.state == "active")
            .where(AttemptRow.ended_at.is_(None))
        )
        return any(self._scalars(sa.select(waits.exists() | runs.exists())))

    def trials(self, study: StudyRecord, *states: TrialState) -> list[FrozenTrial]:
        """Return the study's trials in any of these states, by number. Reads no others."""
        return self._backend.get_all_trials(study.study_id, deepcopy=False, states=states)

    def trial_counts(self, study: StudyRecord) -> Counter[str]:
        """Return how many trials the study has in each state."""
        rows = self._rows(
            sa.select(TrialModel.state, sa.func.count())
            .where(TrialModel.study_id == study.study_id)
            .group_by(TrialModel.state)
        )
        return Counter({state.name: count for state, count in rows})

    def states(
        self, study_id: int, unfinished: Collection[int], newest: int
    ) -> dict[int, TrialState]:
        """Return the states, by id, of the trials `unfinished` and of those after `newest`."""
        rows = self._rows(
            sa.select(TrialModel.trial_id, TrialModel.state)
            .where(newer_or_named(study_id, newest, unfinished))
            .order_by(TrialModel.trial_id)
        )
        return {row.trial_id: row.state for row in rows}

    def states_of(self, trial_ids: Iterable[int]) -> dict[int, TrialState]:
        """Return the states, by id, of those of the trials that are there."""
        wanted = TrialModel.trial_id.in_(list(trial_ids))
        return dict(self._rows(sa.select(TrialModel.trial_id, TrialModel.state).where(wanted)))

    def metrics(self, trial_id: int) -> dict[int, dict[str, Any]]:
        """Return the metrics of one trial by optimizer step, in order."""
        wanted = sa.select(MetricsRow.step, MetricsRow.metrics).where(
            MetricsRow.trial_id == trial_id
        )
        return {step: dict(each) for step, each in self._rows(wanted.order_by(MetricsRow.step))}

    def curves(self, study_id: int, metric: str, *, finished: bool) -> dict[int, dict[int, float]]:
        """Return the values of `metric` by optimizer step, of each trial that has it, by trial id.

        These are the study's trials that are `finished`, or those that are not.
        """
        found: dict[int, dict[int, float]] = defaultdict(dict)
        states = [state for state in TrialState if state.is_finished() == finished]
        with self.sessions() as session:  # row by row: of a big study they are many
            rows = session.execute(
                sa.select(MetricsRow.trial_id, MetricsRow.step, MetricsRow.metrics)
                .join(TrialModel, TrialModel.trial_id == MetricsRow.trial_id)
                .where(TrialModel.study_id == study_id, TrialModel.state.in_(states))
                .order_by(MetricsRow.trial_id, MetricsRow.step)
            )
            for trial_id, step, metrics in rows:
                if metric in metrics:
                    found[trial_id][step] = metrics[metric]
        return dict(found)

    def last_metrics(self, study: StudyRecord) -> dict[int, dict[str, Any]]:
        """Return all metrics of each trial of the study at its last step, by trial id."""
        newest = _at_newest_step(MetricsRow, TRIALS.c.study_id == study.study_id)
        rows = self._rows(sa.select(MetricsRow.trial_id, MetricsRow.metrics).join(*newest))
        return {trial_id: dict(metrics) for trial_id, metrics in rows}

    def results(self, trial_id: int) -> list[dict[str, float]]:
        """Return the last metrics of each training of a trial that has several, in order."""
        wanted = sa.select(ResultRow.metrics).where(ResultRow.trial_id == trial_id)
        return [dict(metrics) for metrics in self._scalars(wanted.order_by(ResultRow.repeat))]

    def seconds(self, study: StudyRecord) -> float:
        """Return the seconds of wall-clock time during which the study had any controller."""
        total = until = 0.0
        for one in sorted(self.controllers(study), key=lambda one: one.started_at):
            total += max(0.0, one.seen_at - max(until, one.started_at))
            until = max(until, one.seen_at)
        return total

    def device_seconds(self, study: StudyRecord) -> float:
        """Return the cost of the study's attempts so far: seconds times ranks.

        An open attempt counts up to the time when its controller was last seen.
        """
        until = sa.func.coalesce(AttemptRow.ended_at, ControllerRow.seen_at)
        (spent,) = self._scalars(
            sa.select(sa.func.sum((until - AttemptRow.started_at) * AttemptRow.devices))
            .join(ControllerRow, ControllerRow.id == AttemptRow.controller_id)
            .where(ControllerRow.study_id == study.study_id)
        )
        return float(spent or 0.0)

    def depth_front(self, trial_id: int) -> list[dict[str, Any]]:
        """Return the trial's newest depth front, shallowest sub-model first; empty if none."""
        return self._depth_fronts(TRIALS.c.trial_id == trial_id).get(trial_id, [])

    def depth_fronts(self, study: StudyRecord) -> dict[int, list[dict[str, Any]]]:
        """Return the newest depth front of each trial of the study that has one, by trial id."""
        return self._depth_fronts(TRIALS.c.study_id == study.study_id)

    def _depth_fronts(self, wanted: sa.ColumnElement[bool]) -> dict[int, list[dict[str, Any]]]:
        row = DepthPointRow
        columns = [column for column in row.__table__.columns if column.name != "trial_id"]
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for trial_id, *point in self._rows(
            sa.select(row.trial_id, *columns)
            .join(*_at_newest_step(row, wanted))
            .order_by(row.trial_id, row.depth, row.search)
        ):
            found[trial_id].append({c.name: v for c, v in zip(columns, point, strict=True)})
        return dict(found)

    def teachers(self, study: StudyRecord) -> list[TeacherRecord]:
        """Return the study's teachers in the order of their keys."""
        wanted = sa.select(TeacherRow).where(TeacherRow.study_id == study.study_id)
        return [teacher_record(row) for row in self._scalars(wanted.order_by(TeacherRow.key))]

    def _studies(self, wanted: sa.ColumnElement[bool]) -> list[StudyRecord]:
        rows = self._rows(
            sa.select(StudyRow, STUDIES.c.study_name)
            .join(STUDIES, STUDIES.c.study_id == StudyRow.study_id)
            .where(wanted)
            .order_by(StudyRow.created_at)
        )
        return [_study(row, name) for row, name in rows if is_study_name(name)]

    def _rows(self, query: sa.Executable) -> Sequence[Any]:
        with self.sessions() as session:
            return session.execute(query).all()

    def _scalars(self, query: sa.Executable) -> Sequence[Any]:
        with self.sessions() as session:
            return session.scalars(query).all()


def attempt_record(row: AttemptRow) -> Attempt:
    """Return what readers get of an attempt's row."""
    reason = Reason(row.reason) if row.reason else None
    place = row.id, row.trial_id, row.number, row.controller_id, row.devices
    times = row.started_at, row.ended_at, row.first_step, row.last_step
    return Attempt(*place, *times, reason, row.detail)


def _study(row: StudyRow, name: str) -> StudyRecord:
    budget = row.budget_trials, row.reserved_trials
    study = row.study_id, row.uid, name, row.document, row.created_at
    return StudyRecord(*study, *budget, row.stop_requested_at, row.runs)


def _at_newest_step(row: Any, wanted: sa.ColumnElement[bool]) -> tuple[Any, Any]:
    """Return what to join the table `row` with to get its rows at each trial's last step."""
    newest = (
        sa.select(row.trial_id, sa.func.max(row.step).label("step"))
        .join(TRIALS, TRIALS.c.trial_id == row.trial_id)
        .where(wanted)
        .group_by(row.trial_id)
        .subquery()
    )
    return newest, (newest.c.trial_id == row.trial_id) & (newest.c.step == row.step)
