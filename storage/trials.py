"""Optuna's storage, reading trials by plain SELECTs.

Optuna makes objects of all rows on its way to a trial, and parses each of its distributions anew:
100,000 trials take it a minute and gigabytes. It also reads all running trials again whenever it is
asked for trials, and of 256 that is a tenth of a second. What is read here is the same.
Nothing here writes.
"""

from __future__ import annotations

import datetime
import gc
import json
from collections.abc import Collection, Container, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from sys import intern
from typing import Any, cast

import sqlalchemy as sa
from optuna.distributions import json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import (
    NOT_FOUND_MSG,
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

FEW = 1_000  # trials, whose rows are read by their ids

_distribution = lru_cache(maxsize=1_000)(json_to_distribution)  # trials share theirs
_report = TrialIntermediateValueModel.stored_repr_to_intermediate_value
_value = TrialValueModel.stored_repr_to_value


def newer_or_named(study_id: int, than: int, trial_ids: Collection[int]) -> sa.ColumnElement[bool]:
    """That a trial is one of these, or of the study and newer than trial `than`.

    Each by an index of its own: of a whole, SQLite would go through the study. The ids are written
    out: a database takes only so many parameters.
    """
    newer = (TrialModel.study_id == study_id) & (TrialModel.trial_id > than)
    ids: sa.BindParameter[int] = sa.bindparam(
        "ids", sorted(trial_ids), expanding=True, literal_execute=True
    )
    return newer | TrialModel.trial_id.in_(ids) if trial_ids else newer


class TrialStorage(RDBStorage):
    """Optuna's storage, whose trials are read faster."""

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """The trial as the database has it. Raises KeyError if there is none."""
        found = self._read(TrialModel.trial_id == trial_id)
        if not found:
            raise KeyError(NOT_FOUND_MSG)
        return found[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        wanted = TrialModel.study_id == study_id
        if trial_id_greater_than > -1:
            wanted = newer_or_named(study_id, trial_id_greater_than, included_trial_ids)
        if states is not None:
            wanted &= TrialModel.state.in_(cast(Iterable[TrialState], states))
        return self._read(wanted)

    def _read(self, wanted: sa.ColumnElement[bool]) -> list[FrozenTrial]:
        with _create_scoped_session(self.scoped_session) as session:
            trials = _bare(session, wanted)
            ids: Any = list(trials)
            if not ids:
                return []
            if len(ids) > FEW:
                ids = sa.select(TrialModel.trial_id).where(wanted)
            with _no_cycles_looked_for():
                _fill(session, trials, ids)
        return list(trials.values())


def _bare(session: Session, wanted: sa.ColumnElement[bool]) -> dict[int, FrozenTrial]:
    """The trials that are `wanted`, by their ids, without what other tables have of them."""
    columns = (
        TrialModel.number,
        TrialModel.state,
        TrialModel._datetime_start_utc,
        TrialModel._datetime_complete_utc,
        TrialModel.trial_id,
    )
    rows = session.execute(sa.select(*columns).where(wanted).order_by(TrialModel.trial_id))
    return {
        trial_id: FrozenTrial(
            number, state, None, _local(began), _local(ended), {}, {}, {}, {}, {}, trial_id
        )
        for number, state, began, ended, trial_id in rows
    }


def _fill(session: Session, trials: dict[int, FrozenTrial], ids: Any) -> None:
    def rows(model: Any, *columns: Any) -> Iterable[Any]:
        (key,) = sa.inspect(model).primary_key
        query = sa.select(model.trial_id, *columns).where(model.trial_id.in_(ids)).order_by(key)
        return session.execute(query)

    param = TrialParamModel
    for trial_id, name, value, text in rows(
        param, param.param_name, param.param_value, param.distribution_json
    ):
        trial, name, distribution = trials[trial_id], intern(name), _distribution(text)
        trial.distributions[name] = distribution
        trial.params[name] = distribution.to_external_repr(value)
    of_value = TrialValueModel
    for trial_id, objective, value, kind in rows(
        of_value, of_value.objective, of_value.value, of_value.value_type
    ):
        trial = trials[trial_id]
        values = trial.values or []
        values += [0.0] * (objective + 1 - len(values))
        values[objective] = _value(value, kind)
        trial.values = values
    user, system = TrialUserAttributeModel, TrialSystemAttributeModel
    for trial_id, key, text in rows(user, user.key, user.value_json):
        trials[trial_id].user_attrs[intern(key)] = json.loads(text)
    for trial_id, key, text in rows(system, system.key, system.value_json):
        trials[trial_id].system_attrs[intern(key)] = json.loads(text)
    reported = TrialIntermediateValueModel
    for trial_id, step, value, kind in rows(
        reported, reported.step, reported.intermediate_value, reported.intermediate_value_type
    ):
        trials[trial_id].intermediate_values[step] = _report(value, kind)


@contextmanager
def _no_cycles_looked_for() -> Iterator[None]:
    # Among millions of new objects, none of them garbage: half of the time goes there.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _local(utc: datetime.datetime | None) -> datetime.datetime | None:
    # As Optuna shows times: naive, of the place.
    return utc and utc.replace(tzinfo=datetime.UTC).astimezone().replace(tzinfo=None)
