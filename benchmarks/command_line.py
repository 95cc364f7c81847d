"""How fast the command line answers: `hpo --help` and `hpo status` on a study of 100 trials.

    python -m benchmarks.command_line

Both against the start of a bare Python, in turn, so that a busy machine shows as such.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna

from benchmarks.report import Result, report
from hpo.study.load import find_study_file, load_study
from storage import Ledger

RUNS = 9
TRIALS = 100


def main() -> None:
    """Time the commands and report medians."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/hpo.db"
        _fill(url)
        hpo = [str(Path(sys.executable).parent / "hpo")]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "hpo --help": [*hpo, "--help"],
            "hpo status": [*hpo, "status", "quickstart", "--storage", url],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(RUNS):
            for name, command in commands.items():
                seconds[name].append(_seconds(command))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    goals = {"hpo --help": 0.5, "hpo status": 1.0}
    report(
        "command_line",
        [
            Result(name, value, "s", f"< {goals[name]}", value < goals[name])
            if name in goals
            else Result(name, value, "s")
            for name, value in medians.items()
        ],
    )


def _fill(url: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = load_study(find_study_file(None))
    ledger = Ledger.open(url, create=True)
    directions = [objective.optuna_direction for objective in config.objectives]
    record = ledger.create_study(
        config.study, directions, ["valid_ppl"], config.to_document(), TRIALS
    )
    lease = ledger.acquire(record)
    study = optuna.load_study(study_name=config.study, storage=ledger.storage)
    for number in range(TRIALS):
        with ledger.transaction(lease) as transaction:
            transaction.reserve_trial()
            trial = study.ask()
            trial.suggest_float("optim.lr", 1e-4, 1e-2)
            attempt = transaction.begin_attempt(trial._trial_id, devices=1)
            for step in (100, 200, 300, 400):
                trial.report(200.0 - number, step)
                transaction.record_metrics(attempt, step, {"valid_ppl": 200.0 - number})
            study.tell(trial, 200.0 - number)
            transaction.end_attempt(attempt, None, None)
    ledger.release(lease)


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
