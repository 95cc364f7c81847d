"""The recipes beside each other: every drop policy, with and without a teacher, on one data set.

    python -m benchmarks.recipes CONFIG.yaml RUNS [--seed N] [--targets PPL,PPL] [path=value]...

Trains each of RECIPES with two seeds from one train config, one after the other, into
RUNS/RECIPE-SEED, and prints a table in Markdown. It can be stopped and started again: a run goes
on where it was, one that has finished is only read. With `--seed` it trains that seed alone, so
that two may train side by side. The teacher is Baseline A of seed 0.

Long trainings are seldom alone on a machine, so their own clocks do not compare. Without `--seed`
each recipe's seconds a step are measured at the end, over runs of TIMED_STEPS steps that take
turns, with each schedule squeezed into them; seconds to a target are those times its steps.
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
from trainer.config.train import load

SEEDS = (0, 1)
TIMED_STEPS = 80
TIMED_ROUNDS = 3
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
}


def main(
    config: str, runs: Path, settings: list[str], targets: list[float], seed: int | None = None
) -> None:
    """Train what is not there yet, and print what all have come to."""
    for each in SEEDS if seed is None else [seed]:
        for name in RECIPES:
            _train(config, runs / f"{name}-{each}", name, [*settings, f"seed={each}"], runs)
    if seed is None:
        _report(config, runs, settings, targets)


def _report(config: str, runs: Path, settings: list[str], targets: list[float]) -> None:
    found = {name: [_result(runs / f"{name}-{seed}") for seed in SEEDS] for name in RECIPES}
    reached = {
        name: [_steps_to(runs / f"{name}-{seed}", targets) for seed in SEEDS] for name in RECIPES
    }
    depths = sorted(load(config, settings).evaluation.depths, reverse=True)
    _print_table(found, reached, _step_seconds(config, runs, settings), depths, targets)
    ppl = {name: statistics.mean(r["valid_ppl"] for r in both) for name, both in found.items()}
    report("recipes", [Result(f"{name}: valid_ppl", value, "") for name, value in ppl.items()])


def _step_seconds(config: str, runs: Path, settings: list[str]) -> dict[str, float]:
    """Median seconds of a whole step, each run's mean over its schedule."""
    seconds: dict[str, list[float]] = {name: [] for name in RECIPES}
    timed = [f"steps={TIMED_STEPS}", f"eval_every={TIMED_STEPS}", "layerdrop.analysis_steps=1"]
    for turn in range(TIMED_ROUNDS):
        for name in RECIPES:
            folder = runs / f"timed-{name}-{turn}"
            _train(config, folder, name, [*settings, *timed, "evaluation.depths=[]"], runs)
            seconds[name].append(_result(folder)["train_seconds"] / TIMED_STEPS)
    return {name: statistics.median(each) for name, each in seconds.items()}


def _steps_to(folder: Path, targets: list[float]) -> list[int | None]:
    """Steps of the first evaluation at each target or below it."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    history = [(m["step"], m["valid_ppl"]) for m in map(json.loads, lines)]
    return [next((step for step, ppl in history if ppl <= target), None) for target in targets]


def _train(config: str, folder: Path, name: str, settings: list[str], runs: Path) -> None:
    command = [sys.executable, "-m", "trainer", config, *settings, *RECIPES[name]]
    command.append(f"output_dir={folder}")
    if name.endswith("+KD"):
        command.append(f"distillation.teacher={runs / 'A-0'}")
    print(" ".join(["python", *command[1:]]), flush=True)
    subprocess.run(command, check=True)


def _result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def _print_table(
    found: dict[str, list[dict[str, Any]]],
    reached: dict[str, list[list[int | None]]],
    step_seconds: dict[str, float],
    depths: list[int],
    targets: list[float],
) -> None:
    keys = ["valid_ppl", *(f"valid_ppl_depth_{depth}" for depth in depths)]
    columns = [*keys, "seconds a step", *(f"steps, seconds to {target:g}" for target in targets)]
    print(f"| recipe | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, both in found.items():
        cells = [" / ".join(f"{result[key]:.1f}" for result in both) for key in keys]
        cells.append(f"{step_seconds[name]:.3f}")
        for position in range(len(targets)):
            steps = [each[position] for each in reached[name]]
            cells.append(" / ".join(_shown(step, step_seconds[name]) for step in steps))
        print(f"| {name} | {' | '.join(cells)} |")


def _shown(steps: int | None, step_seconds: float) -> str:
    return "never" if steps is None else f"{steps:,}, {steps * step_seconds:.0f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.recipes")
    parser.add_argument("config")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--targets", default="200,130", help="valid perplexities")
    parser.add_argument("settings", nargs="*")
    given = parser.parse_intermixed_args()
    targets = [float(target) for target in given.targets.split(",")]
    main(given.config, given.runs, given.settings, targets, given.seed)
