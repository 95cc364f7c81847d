"""The recipes beside each other: every drop policy, with and without a teacher, on one data set.

    python -m benchmarks.recipes CONFIG.yaml RUNS [--seed N] [path=value]...

Trains each of RECIPES with two seeds from one train config, one after the other, into
RUNS/RECIPE-SEED, and prints a table in Markdown. It can be stopped and started again: a run goes
on where it was, one that has finished is only read. With `--seed` it trains that seed alone, so
that two may train side by side. The teacher is Baseline A of seed 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import Result, report
from trainer.config import load

SEEDS = (0, 1)
TAUGHT = [
    "distillation.enabled=true",
    "distillation.alpha=0.7",
    "distillation.beta=0.3",
    "distillation.top_k=32",
]
STATIC = ["layerdrop.policy=static", "layerdrop.p_init=0.2"]
COSINE = ["layerdrop.policy=cosine", "layerdrop.p_init=0.2", "layerdrop.p_final=0.05"]
RECIPES = {
    "A": ["layerdrop.policy=none"],
    "B": STATIC,
    "linear": ["layerdrop.policy=linear", "layerdrop.p_init=0.2", "layerdrop.p_final=0.05"],
    "cosine": COSINE,
    "PLD": ["layerdrop.policy=pld"],
    "SBLD-style": ["layerdrop.policy=sbld", "layerdrop.p_init=0.2"],
    "B+KD": [*STATIC, *TAUGHT],
    "cosine+KD": [*COSINE, *TAUGHT],
    "B-from-2": [*STATIC, "layerdrop.start_layer=2"],
    "B-4-masks": [*STATIC, "optim.accumulation=4"],
}


def main(config: str, runs: Path, settings: list[str], seed: int | None = None) -> None:
    """Train what is not there yet, and print what all have come to."""
    for each in SEEDS if seed is None else [seed]:
        for name in RECIPES:
            _train(config, runs, name, each, settings)
    if seed is None:
        _report(config, runs, settings)


def _report(config: str, runs: Path, settings: list[str]) -> None:
    found = {name: [_result(runs, name, seed) for seed in SEEDS] for name in RECIPES}
    _print_table(found, load(config, settings).evaluation.depths)
    ppl = {name: statistics.mean(r["valid_ppl"] for r in both) for name, both in found.items()}
    report("recipes", [Result(f"{name}: valid_ppl", value, "") for name, value in ppl.items()])


def _train(config: str, runs: Path, name: str, seed: int, settings: list[str]) -> None:
    command = [sys.executable, "-m", "trainer", config, *settings, *RECIPES[name], f"seed={seed}"]
    command.append(f"output_dir={_folder(runs, name, seed)}")
    if name.endswith("+KD"):
        command.append(f"distillation.teacher={_folder(runs, 'A', 0)}")
    print(" ".join(["python", *command[1:]]), flush=True)
    subprocess.run(command, check=True)


def _folder(runs: Path, name: str, seed: int) -> Path:
    return runs / f"{name}-{seed}"


def _result(runs: Path, name: str, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_folder(runs, name, seed) / "result.json").read_text())
    return found


def _print_table(found: dict[str, list[dict[str, Any]]], depths: list[int]) -> None:
    keys = ["valid_ppl", *(f"valid_ppl_depth_{depth}" for depth in sorted(depths, reverse=True))]
    keys += ["steps_to_target", "seconds_to_target", "train_seconds"]
    print(f"| recipe | {' | '.join(keys)} |\n|{'---|' * (len(keys) + 1)}")
    for name, both in found.items():
        cells = [" / ".join(_shown(result.get(key)) for result in both) for key in keys]
        print(f"| {name} | {' | '.join(cells)} |")


def _shown(value: float | None) -> str:
    if value is None:
        return "not reached"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.recipes")
    parser.add_argument("config")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("settings", nargs="*")
    given = parser.parse_intermixed_args()
    main(given.config, given.runs, given.settings, given.seed)
