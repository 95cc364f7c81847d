"""Studies written into a ledger at once, as long as a test wants, with what trainings report."""

from __future__ import annotations

import math
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from storage.models import AttemptRow, DepthPointRow, MetricsRow
from storage.session import joined
from tests.hpo.test_controller import Stage

MARKUP = "<script>alert('boo')</script>"  # what no page may have unescaped
SPACE: dict[str, BaseDistribution] = {
    "optim.lr": FloatDistribution(1e-4, 1e-2, log=True),
    "layerdrop.p_init": FloatDistribution(0.05, 0.4),
    "layerdrop.p_final": FloatDistribution(0.0, 0.1),
    "model.dropout": FloatDistribution(0.0, 0.3),
    "optim.warmup_steps": FloatDistribution(1.0, 100.0),
    "layerdrop.policy": CategoricalDistribution(["static", MARKUP]),
}
REASONS = (None, "pruned", "pruned", None, "worker_lost", "pruned", None, "diverged")
START = 1.8e9


def written(url: str, trials: int, metrics: tuple[str, ...] = ("valid_ppl",)) -> Stage:
    """A study whose best trials have optim.lr near 1e-3; every trial begins a second later."""
    objectives = [{"metric": metric} for metric in metrics]
    stage = Stage(url, objectives=objectives, budget={"trials": max(1, trials)})
    study = optuna.load_study(study_name="played", storage=stage.ledger.storage)
    with joined(stage.ledger._sessions):  # one commit, and no wait for the disk after each
        study.add_trials([_trial(number, metrics) for number in range(trials)])
    controller = stage.ledger.acquire(stage.record).controller_id
    made = stage.trials
    with joined(stage.ledger._sessions) as session:
        for number, trial in enumerate(made):
            _rows(session, controller, number, trial._trial_id, metrics)
    return stage


def _params(number: int) -> dict[str, Any]:
    share = [(number * prime * 0.618) % 1 for prime in (1, 3, 7, 11, 13)]
    return {
        "optim.lr": 1e-4 * 100 ** share[0],
        "layerdrop.p_init": 0.05 + 0.35 * share[1],
        "layerdrop.p_final": 0.1 * share[2],
        "model.dropout": 0.3 * share[3],
        "optim.warmup_steps": 1 + 99 * share[4],
        "layerdrop.policy": MARKUP if number % 2 else "static",
    }


def _value(number: int) -> float:
    params = _params(number)
    return 100 + 40 * abs(math.log10(params["optim.lr"]) + 3) + 20 * params["model.dropout"]


def _trial(number: int, metrics: tuple[str, ...]) -> optuna.trial.FrozenTrial:
    reason = REASONS[number % len(REASONS)]
    complete = reason in {None, "worker_lost"}  # the lost one was trained again
    return create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        values=[_value(number), *(1.0 / _value(number) for _ in metrics[1:])] if complete else None,
        params=_params(number),
        distributions=SPACE,
        user_attrs={"reason": reason or "", "detail": MARKUP},
    )


def _rows(
    session: Any, controller: int, number: int, trial_id: int, metrics: tuple[str, ...]
) -> None:
    reason = REASONS[number % len(REASONS)]
    ends = [(1, reason), *([(2, None)] if reason == "worker_lost" else [])]
    for attempt, why in ends:
        begin = START + number + 2 * (attempt - 1)
        session.add(
            AttemptRow(
                id=2 * number + attempt, trial_id=trial_id, number=attempt,
                controller_id=controller, devices=2, started_at=begin,
                ended_at=begin + 1.9, first_step=0, last_step=300, reason=why,
                detail=f"Traceback\nValueError: {MARKUP}" if why == "worker_lost" else None,
            )
        )  # fmt: skip
    session.flush()
    for step in range(50, 350 if reason in {None, "worker_lost"} else 200, 50):
        value = _value(number) * (1 + 200 / step)
        told = {metric: value if n == 0 else 1 / value for n, metric in enumerate(metrics)}
        session.add(
            MetricsRow(
                trial_id=trial_id, step=step, attempt_id=2 * number + 1, at=START, metrics=told
            )
        )  # fmt: skip
    if number == 0:
        for depth in (2, 4):
            session.add(
                DepthPointRow(
                    trial_id=trial_id, step=300, depth=depth, search="greedy",
                    layers=list(range(1, depth + 1)), valid_ppl=200.0 - depth, parameters=10,
                    seconds_per_token=1e-4,
                )
            )  # fmt: skip
