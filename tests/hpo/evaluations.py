"""Tuned studies, and controllers of their evaluations, for tests that play trainings."""

from __future__ import annotations

from typing import Any

from hpo.control.controller import Controller
from hpo.study.load import config_of
from storage import Ledger, StudyRecord
from tests.hpo.stage import Stage, finish
from tests.leases import lapse


def tuned(url: str, *values: float, **changes: Any) -> Stage:
    """A study whose trials came to these values."""
    stage = Stage(url, budget={"trials": len(values)}, **changes)
    controller = stage.controller()
    for value in values:
        finish(controller, value)
    stage.lapse()
    return stage


def controller(ledger: Ledger, record: StudyRecord, trials: int) -> Controller:
    lapse(ledger)
    lease = ledger.acquire(record, trials=trials)
    return Controller(ledger, ledger.study(record.name), config_of(record), lease, "/runs")
