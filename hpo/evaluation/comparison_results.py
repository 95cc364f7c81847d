"""The results of a comparison: means, deviations, and differences that are paired by seed.

They are computed from the ledger and kept on the comparison's study. A difference is between two
recipes under one seed. Its confidence interval, by Student's t over the seeds, holds for that one
difference alone: among many intervals, some miss the true value.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from hpo.evaluation.comparisons import SUFFIX, Comparison, plan_comparison
from hpo.evaluation.phase import keep_result, spread
from hpo.evaluation.recipes import names_in, sub_model_depths
from hpo.reading.comparison_table import check_files
from hpo.reading.views import View
from hpo.service.launch import Say
from storage import Ledger
from trainer.config.settings import ConfigError, nearest
from trainer.config.train import TrainConfig
from trainer.measuring.convergence import to_target

RESULT = "comparison"  # user attribute of a comparison's study: what `conclude_comparison` found
LEVEL = 0.95  # of the confidence intervals
COMPARED = ("valid_ppl", "test_ppl")
MEASURED = (*COMPARED, "tokens_per_second", "peak_memory_bytes")


@dataclass(frozen=True)
class ComparisonRequest:
    """What a person wants to compare."""

    recipes: str | None  # a list with commas; None: the usual ones, or those that it was begun with
    seeds: int
    against: str | None  # the recipe that the others are compared with; None: the first
    target: float | None  # a perplexity on valid
    files: Sequence[Path]  # the caller writes the tables to these files
    study: str | None  # the comparison's name; None: after the study's


def compare_recipes(
    ledger: Ledger,
    name: str,
    request: ComparisonRequest,
    runs: str | None,
    train: Callable[[Comparison], None],
    say: Say,
) -> View:
    """Train and compare recipes in the settings of study `name`; return the results.

    Raises ConfigError, in one line, with nothing written.
    """
    check_files(request.files)
    against = request.against
    wanted = [] if request.recipes is None else names_in(request.recipes)
    study = request.study or f"{name}{SUFFIX}"
    planned = plan_comparison(ledger, name, wanted, request.seeds, study, runs)
    if against is not None and against not in planned.recipes:
        near = nearest(against, planned.recipes)
        raise ConfigError(f"--against {against}: is none of the recipes{near}")
    if planned.note:
        say(planned.note)
    train(planned)
    return conclude_comparison(ledger, planned, against, request.target)


def conclude_comparison(
    ledger: Ledger, plan: Comparison, against: str | None = None, target_ppl: float | None = None
) -> View:
    """Return the plan's results by recipe, and keep them on the comparison's study.

    Differences are to the recipe `against`, else to the first. The target is `target_ppl`, else the
    study's own, else the worst perplexity on valid that a training ended with: all reached that.
    """
    record = ledger.study(plan.config.study)
    ended = ledger.trials(record, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    runs = {
        recipe: [_run(ledger, trial) for trial in plan.of({"recipe": recipe}, ended)]
        for recipe in plan.recipes
    }
    against = against or next(iter(runs))
    last = [run.last["valid_ppl"] for each in runs.values() for run in each if run.whole]
    bests = (run.best for each in runs.values() for run in each)
    own = plan.config.train["evaluation"]["target_ppl"]
    target_ppl = target_ppl or own or max(last, default=None)
    found = {
        "study": plan.name,
        "comparison": record.name,
        "against": against,
        "best": next((best for best in bests if best is not None), None),
        "target_ppl": target_ppl,
        "confidence": LEVEL,
        "teachers": [
            {"teacher": teacher.key, "seconds": round(teacher.seconds, 3)}
            for teacher in ledger.teachers(record)
        ],
        "recipes": [_row(plan, recipe, runs, against, target_ppl) for recipe in plan.recipes],
    }
    keep_result(ledger, record, RESULT, found)
    return found


@dataclass(frozen=True)
class _Run:
    """One training of a recipe that has ended."""

    trial: FrozenTrial
    history: list[dict[str, Any]]  # its metrics in the order of steps
    device_seconds: float

    @property
    def last(self) -> dict[str, Any]:
        """The metrics of its last evaluation."""
        return self.history[-1] if self.history else {}

    @property
    def whole(self) -> bool:
        return self.trial.state is TrialState.COMPLETE

    @property
    def best(self) -> int | None:
        """Number of the trial that was the study's best when the comparison was begun."""
        number: int | None = self.trial.user_attrs["origin"].get("best")
        return number


def _run(ledger: Ledger, trial: FrozenTrial) -> _Run:
    history = [{"step": step, **each} for step, each in ledger.metrics(trial._trial_id).items()]
    attempts = ledger.trial_attempts(trial._trial_id)
    return _Run(
        trial,
        sorted(history, key=lambda metrics: metrics["step"]),
        sum(attempt.device_seconds for attempt in attempts),
    )


def _row(
    plan: Comparison,
    recipe: str,
    runs: Mapping[str, list[_Run]],
    against: str,
    target_ppl: float | None,
) -> View:
    whole = [run for run in runs[recipe] if run.whole]
    reached = [to_target(run.history, target_ppl) for run in whole]
    reached = [each for each in reached if each]
    layers = plan.train(recipe).model.layers
    return {
        "recipe": recipe,
        "settings": plan.recipes[recipe],
        "size": _size(plan.train(recipe)),
        "trained": [run.trial.number for run in whole],  # trials of the comparison
        "seeds": [run.trial.params["seed"] for run in whole],
        "ended_early": Counter(
            str(run.trial.user_attrs.get("reason")) for run in runs[recipe] if not run.whole
        ),
        **{name: spread([run.last[name] for run in whole]) for name in MEASURED},
        "sub_models": {
            share: {
                "depth": depth,
                **spread([run.last[f"valid_ppl_depth_{depth}"] for run in whole]),
            }
            for share, depth in sub_model_depths(layers).items()
        },
        "reached_target": len(reached),
        "steps_to_target": spread([each["steps_to_target"] for each in reached]),
        "seconds_to_target": spread([each["seconds_to_target"] for each in reached]),
        "device_seconds": spread([run.device_seconds for run in whole]),
        "differences": {name: _difference(name, runs[recipe], runs[against]) for name in COMPARED},
    }


def _size(train: TrainConfig) -> dict[str, int]:
    """Return the settings by which a step or a model is larger than another's."""
    data, model = train.data, train.model
    return {
        "data.batch_size": data.batch_size,
        "data.context": data.context,
        **{f"model.{key}": getattr(model, key) for key in ("layers", "d_model", "d_ff")},
    }


def _difference(name: str, ours: Sequence[_Run], theirs: Sequence[_Run]) -> View | None:
    """Return the mean of ours less theirs, seed by seed, and its interval by Student's t."""
    other = {run.trial.params["seed"]: run.last[name] for run in theirs if run.whole}
    pairs = [
        run.last[name] - other[seed]
        for run in ours
        if run.whole and (seed := run.trial.params["seed"]) in other
    ]
    if not pairs or ours is theirs:
        return None
    mean, half = statistics.fmean(pairs), None
    if len(pairs) > 1:
        error = statistics.stdev(pairs) / len(pairs) ** 0.5
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(pairs) - 1)) * error
    return {
        "pairs": len(pairs),
        "mean": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
    }
