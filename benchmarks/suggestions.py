"""Workers' idle time while a suggestion is made: Ax against random search, through `hpo start`.

    python -m benchmarks.suggestions

Thirty trials, two at a time, of real trainings of some seconds each, over a space with two
categoricals and two objectives. A worker is idle from one trial's end to the next one's start, by
the ledger's clock; random search says how much of that is not for a suggestion. Trainings in
earnest last minutes: here Ax has far less time than there, on cores that all train, and `by ax`
says how many trials it was in time for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import optuna
import yaml

from benchmarks.report import Result, report
from storage import Ledger

TRIALS = 30
WORKERS = 2
GOAL = 0.05
# About 6 s on one of two busy cores.
TRAIN = {
    "steps": 240,
    "eval_every": 120,
    "data": {"name": "pydocs", "context": 64, "batch_size": 16},
    "model": {"layers": 2, "d_model": 64, "heads": 2, "d_ff": 128},
}


def main() -> None:
    """Measure both, and report the shares of the workers' time."""
    sampled = {name: measure(name) for name in ("random", "ax")}
    idle = {name: share for name, (share, _) in sampled.items()}
    by = sampled["ax"][1]
    waiting = max(0.0, idle["ax"] - idle["random"])
    report(
        "suggestions",
        [
            Result("idle between trials, random", 100 * idle["random"], "%"),
            Result("idle between trials, ax", 100 * idle["ax"], "%"),
            Result(
                "of it for a suggestion", 100 * waiting, "%", f"< {100 * GOAL:g}", waiting < GOAL
            ),
            *(Result(f"trials by {name}", count, "trials") for name, count in sorted(by.items())),
        ],
    )


def measure(sampler: str) -> tuple[float, Counter[str]]:
    """The share of the workers' time between trials, and what suggested how many of them."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "study.yaml").write_text(yaml.safe_dump(_study(sampler)))
        subprocess.run(
            [sys.executable, "-m", "hpo", "start", "study.yaml"],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        ledger = Ledger.open(f"sqlite:///{folder}/hpo.db")
        attempts = [a for tried in ledger.attempts(ledger.study("suggestions")).values()
                    for a in tried]  # fmt: skip
        study = optuna.load_study(study_name="suggestions", storage=ledger.storage)
        by = Counter(t.user_attrs.get("suggested_by", sampler) for t in study.trials)
    starts = sorted(a.started_at for a in attempts)
    ends = sorted(a.ended_at for a in attempts if a.ended_at is not None)
    # The third start follows the first end, and so on: one end frees one worker.
    idle = sum(start - end for start, end in zip(starts[WORKERS:], ends, strict=False))
    return idle / (WORKERS * (ends[-1] - starts[0])), by


def _study(sampler: str) -> dict[str, object]:
    return {
        "study": "suggestions",
        "sampler": {"name": sampler},
        "objectives": [
            {"metric": "valid_ppl", "direction": "minimize"},
            {"metric": "step_seconds", "direction": "minimize"},
        ],
        "budget": {"trials": TRIALS},
        "resources": {"concurrent_trials": WORKERS},
        "train": TRAIN,
        "space": {
            "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "layerdrop.p_init": {"type": "float", "low": 0.0, "high": 0.5},
            "layerdrop.policy": {"type": "categorical", "choices": ["static", "linear", "cosine"]},
            "model.heads": {"type": "categorical", "choices": [1, 2, 4]},
        },
    }


if __name__ == "__main__":
    main()
