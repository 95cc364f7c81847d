"""Studies written into a ledger at once, as long as a test wants, with what trainings report.

Rows go in by SQL: Optuna takes a minute for two thousand trials.
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    distribution_to_json,
)
from optuna.storages._rdb import models as optunas
from optuna.trial import TrialState

from storage.models import AttemptRow, DepthPointRow, MetricsRow
from storage.session import joined
from tests.hpo.stage import Stage

MARKUP = "<script>alert('boo')</script>"  # what no page may have unescaped
SPACE: dict[str, BaseDistribution] = {
    "optim.lr": FloatDistribution(1e-4, 1e-2, log=True),
    "layerdrop.p_init": FloatDistribution(0.05, 0.4),
    "layerdrop.p_final": FloatDistribution(0.0, 0.1),
    "model.dropout": FloatDistribution(0.0, 0.3),
    "optim.warmup_steps": FloatDistribution(1.0, 100.0),
    "layerdrop.policy": CategoricalDistribution(["static", "linear", MARKUP]),
}
REASONS = (None, "pruned", "pruned", None, "worker_lost", "pruned", None, "diverged")
RETRIED = "worker_lost"  # then trained again, to the end
START = 1.8e9

Rows = dict[type[Any], list[dict[str, Any]]]


def written(
    url: str, trials: int, metrics: tuple[str, ...] = ("valid_ppl",), says: str = MARKUP
) -> Stage:
    """A study whose best trials have optim.lr near 1e-3 and the highest model.dropout.

    Every trial begins a second later. Whatever is anybody's text `says` so; it is a policy, too.
    """
    objectives = [{"metric": metric} for metric in metrics]
    stage = Stage(url, objectives=objectives, budget={"trials": max(1, trials)})
    controller = stage.ledger.acquire(stage.record).controller_id
    rows: Rows = defaultdict(list)
    for number in range(trials):
        _optunas(rows, stage.record.study_id, number, len(metrics), says)
        _attempts(rows, number, controller, says)
        _metrics(rows, number, metrics)
    with joined(stage.ledger.sessions) as session:
        for table, values in rows.items():
            session.execute(sa.insert(table), values)
    return stage


def _reason(number: int) -> str | None:
    return REASONS[number % len(REASONS)]


def _complete(number: int) -> bool:
    return _reason(number) in {None, RETRIED}


def _params(number: int, says: str = MARKUP) -> dict[str, Any]:
    share = random.Random(number).random
    return {
        "optim.lr": 1e-4 * 100 ** share(),
        "layerdrop.p_init": 0.05 + 0.35 * share(),
        "layerdrop.p_final": 0.1 * share(),
        "model.dropout": min(0.3, 0.6 * share()),  # as if it wanted more
        "optim.warmup_steps": 1 + 99 * share(),
        "layerdrop.policy": says if number % 2 else "static",
    }


def _values(number: int) -> tuple[float, float]:
    """Valid perplexity, and seconds a step: dropping layers costs the one and saves the other."""
    params = _params(number)
    off = math.log10(params["optim.lr"]) + 3
    ppl = 90 + 300 * off**2 + 200 * (0.3 - params["model.dropout"])
    ppl += 80 * params["layerdrop.p_init"] + random.Random(-number).gauss(0, 3)
    seconds = 0.02 * (1 - params["layerdrop.p_init"]) * random.Random(number + 0.5).uniform(1, 1.1)
    return ppl if _complete(number) else 1.5 * ppl, seconds


def _optunas(rows: Rows, study_id: int, number: int, objectives: int, says: str) -> None:
    trial = {"trial_id": number + 1}
    at = datetime.fromtimestamp(START + number, UTC).replace(tzinfo=None)
    state = TrialState.COMPLETE if _complete(number) else TrialState.PRUNED
    rows[optunas.TrialModel].append(
        trial
        | {"number": number, "study_id": study_id, "state": state}
        | {"datetime_start": at, "datetime_complete": at}
    )
    rows[optunas.TrialUserAttributeModel].append(
        trial | {"key": "detail", "value_json": json.dumps(says)}
    )
    for name, value in _params(number, says).items():
        rows[optunas.TrialParamModel].append(
            trial
            | {"param_name": name, "param_value": SPACE[name].to_internal_repr(value)}
            | {"distribution_json": distribution_to_json(SPACE[name])}
        )
    for objective in range(objectives if _complete(number) else 0):
        rows[optunas.TrialValueModel].append(
            trial
            | {"objective": objective, "value": _values(number)[objective]}
            | {"value_type": optunas.TrialValueModel.TrialValueType.FINITE}
        )


def _attempts(rows: Rows, number: int, controller: int, says: str) -> None:
    reason = _reason(number)
    for attempt, why in enumerate([reason, None] if reason == RETRIED else [reason]):
        begin = START + number + 2 * attempt
        rows[AttemptRow].append(
            {"id": 2 * number + attempt + 1, "trial_id": number + 1, "number": attempt + 1}
            | {"controller_id": controller, "devices": 2, "reason": why}
            | {"started_at": begin, "ended_at": begin + 1.9, "first_step": 0, "last_step": 300}
            | {"detail": f"Traceback\nValueError: {says}" if why else None}
        )


def _metrics(rows: Rows, number: int, metrics: tuple[str, ...]) -> None:
    of_trial = {"trial_id": number + 1, "attempt_id": 2 * number + 1, "at": START}
    for step in range(50, 350 if _complete(number) else 200, 50):
        told = dict(zip(metrics, _values(number), strict=False))
        told["valid_ppl"] *= 1 + 200 / step
        rows[MetricsRow].append(of_trial | {"step": step, "metrics": told})
    ppl = _values(number)[0]
    for depth in (2, 4) if _complete(number) else ():
        rows[DepthPointRow].append(
            {"trial_id": number + 1, "step": 300, "depth": depth, "layers": [1, depth]}
            | {"search": "greedy", "valid_ppl": 5 * ppl / depth}
            | {"parameters": 10, "seconds_per_token": 1e-4}
        )
