"""What a teacher costs: step time and memory with a live one and a cached one, beside none.

    python -m benchmarks.distillation [PRECISION...]

The student has 12 layers of 256 and a vocabulary of 10,000; the teacher is of the same size. Step
times are of one process that trains all three in turn, one step of each. Peak memory is that of a
process of its own for each. Steps are the engine's, with the lesson, without the batch.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from benchmarks.report import Result, report
from benchmarks.throughput import write_text

LAYERS, WIDTH, VOCABULARY, SEQUENCES, CONTEXT, TOP_K = 12, 256, 10_000, 32, 64, 16
WARM_UP, STEPS = 2, 12
ARMS: dict[str, dict[str, Any]] = {
    "no teacher": {"enabled": False},
    "cached": {"enabled": True, "top_k": TOP_K},
    "live": {"enabled": True},
}
GOALS = {"cached": 1.10, "live": 1.40}


def main(precisions: list[str]) -> None:
    """Measure step times and peak memory in each precision, and report ratios."""
    results = []
    for precision in precisions or ["fp32", "bf16"]:
        with tempfile.TemporaryDirectory() as folder:
            write_text(Path(folder), VOCABULARY)
            seconds = _in_a_process(precision, folder, list(ARMS))
            memory = {arm: _in_a_process(precision, folder, [arm])[arm][1] for arm in ARMS}
        plain = seconds["no teacher"][0]
        for arm in ARMS:
            name, ratio = f"{precision}: {arm}", seconds[arm][0] / plain
            results.append(Result(f"{name}: step", seconds[arm][0], "s"))
            results.append(Result(f"{name}: peak memory", memory[arm] / 2**20, "MiB"))
            if arm in GOALS:
                goal = GOALS[arm]
                results.append(Result(f"{name}: ratio", ratio, "", f"<= {goal}", ratio <= goal))
    report("distillation", results)


def _in_a_process(precision: str, folder: str, arms: list[str]) -> dict[str, tuple[float, float]]:
    # By arm: median seconds of a step, and the process' peak bytes.
    command = [sys.executable, "-m", "benchmarks.distillation", "--arms", precision, folder, *arms]
    environment = {**os.environ, "HPO_CACHE_DIR": folder}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, tuple[float, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(precision: str, folder: Path, arms: list[str]) -> None:
    from trainer.config.train import resolve
    from trainer.engine.distributed import from_environment, leave
    from trainer.engine.memory import peak_bytes, reset_peak
    from trainer.run import Run

    world = from_environment()
    if not (folder / "teacher").exists():
        with closing(
            Run(resolve(_document(precision, folder, "teacher", 1), "teacher"), world)
        ) as run:
            run.advance()
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    with ExitStack() as stack:
        runs = {
            arm: stack.enter_context(
                closing(Run(resolve(_document(precision, folder, arm, STEPS), arm), world))
            )
            for arm in arms
        }
        reset_peak(world.device)
        for _ in range(STEPS):
            for arm, run in runs.items():
                started = time.perf_counter()
                run._train_step()
                times[arm].append(time.perf_counter() - started)
    peak = peak_bytes(world.device)
    print(json.dumps({arm: (statistics.median(t[WARM_UP:]), peak) for arm, t in times.items()}))
    leave()


def _document(precision: str, folder: Path, arm: str, steps: int) -> dict[str, Any]:
    distillation = {"teacher": str(folder / "teacher"), **ARMS.get(arm, {"enabled": False})}
    return {
        "output_dir": str(folder / arm.replace(" ", "-")),
        "steps": steps,
        "eval_every": steps,
        "precision": precision,
        "threads": len(os.sched_getaffinity(0)),
        "data": {
            "name": "text", "context": CONTEXT, "batch_size": SEQUENCES,
            **{split: str(folder / f"{split}.txt") for split in ("train", "valid", "test")},
        },
        "model": {"layers": LAYERS, "d_model": WIDTH, "heads": 4, "d_ff": 4 * WIDTH},
        "distillation": distillation,
    }  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--arms"]:
        _measure(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    else:
        main(sys.argv[1:])
