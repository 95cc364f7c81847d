"""Evaluations: a study's best configurations trained again under fresh seeds, and then tested.

Both the choice and the results come from the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.control.repeats import mean_metrics
from hpo.evaluation.phase import (
    Plan,
    begun_trials,
    fresh_seeds,
    keep_result,
    last_metrics,
    phase_config,
    spread,
    teachers_again,
    tuned_study,
)
from hpo.reading.views import View
from hpo.search.ranking import best_trials
from hpo.study.hints import command
from storage import Ledger, Point
from trainer.config.settings import ConfigError
from trainer.config.train import resolve
from trainer.data.splits import check_data

SUFFIX = ".evaluation"
RESULT = "evaluation"  # user attribute of an evaluation's study: what `conclude_evaluation` found


@dataclass(frozen=True)
class Evaluation(Plan):
    """A plan to train each of the `chosen` trials again under each of the seeds."""

    chosen: list[FrozenTrial]


def plan_evaluation(ledger: Ledger, name: str, top: int, seeds: int) -> Evaluation:
    """Plan an evaluation of the `top` best trials of study `name`, or of those on its Pareto front.

    Raises ConfigError, in one line, if no evaluation can be made, or not yet. Writes nothing.
    """
    record, config = tuned_study(ledger, name)
    chosen = best_trials(optuna.load_study(study_name=name, storage=ledger.storage), top)
    if len(chosen) < top:
        raise ConfigError(
            f"--top {top}: study {name} has {len(chosen)} trials that are complete and feasible; "
            f"see: {command(f'hpo trials {name}', ledger.url)}"
        )
    begun = begun_trials(ledger, f"{name}{SUFFIX}")
    fresh = fresh_seeds(config, ledger.trials(record, *TrialState), begun, seeds)
    points = [
        Point({**trial.params, "seed": seed}, {"study": name, "trial": trial.number})
        for trial in chosen
        for seed in fresh
    ]
    made = phase_config(config, f"{name}{SUFFIX}", config.space, len(points))
    for point in points[::seeds]:
        document = made.trial_document(dict(point.params), "an evaluation")
        check_data(resolve(document, f"study {name}").data, test=True)
    return Evaluation(name, made, fresh, points, teachers_again(ledger, record), chosen)


def conclude_evaluation(ledger: Ledger, plan: Evaluation) -> list[View]:
    """Return the results of the plan's trainings, and keep them on the evaluation's study.

    There is a row for each configuration. Its optimism gap tells how far the search was too
    optimistic: mean valid perplexity under fresh seeds, less the one by which it was chosen.
    """
    record = ledger.study(plan.config.study)
    complete = ledger.trials(record, TrialState.COMPLETE)
    rows = [_row(ledger, plan, trial, complete) for trial in plan.chosen]
    keep_result(ledger, record, RESULT, rows)
    return rows


def _row(ledger: Ledger, plan: Evaluation, trial: FrozenTrial, complete: list[FrozenTrial]) -> View:
    runs = plan.of({"trial": trial.number}, complete)
    metrics = [last_metrics(ledger, run) for run in runs]
    tuned = mean_metrics(ledger.results(trial._trial_id) or [last_metrics(ledger, trial)])
    valid, test = (spread([each[name] for each in metrics]) for name in ("valid_ppl", "test_ppl"))
    return {
        "trial": trial.number,
        "params": trial.params,
        "trained": [run.number for run in runs],  # trials of the evaluation
        "seeds": [run.params["seed"] for run in runs],
        "tuned_valid_ppl": tuned.get("valid_ppl"),
        "valid_ppl": valid,
        "test_ppl": test,
        "optimism_gap": _less(valid["mean"], tuned.get("valid_ppl")),
        "test_minus_valid": _less(test["mean"], valid["mean"]),
    }


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
