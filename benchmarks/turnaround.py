"""From one trial's end to the next one's first optimizer step: our gang against TorchTrainer.

    python -m benchmarks.turnaround

Both run trials of two gloo ranks under DeepSpeed ZeRO-2, one after the other on this machine, in
turn: ours through `hpo start`, the other as Ray documents it (torch_trainer_baseline.py here).
Ours is read from files that the trials leave, both stamps on the far side: from the last line of
`metrics.jsonl`, a few milliseconds after the last step, to the checkpoint after the first step.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks import torch_trainer_baseline
from benchmarks.report import Result, report

OUR_TRIALS = 6
THEIR_TRIALS = 3
ROUNDS = 2
GOAL = 20


def main() -> None:
    """Measure both, in turn, and report the medians and their ratio."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(ROUNDS):
        ours += measure(OUR_TRIALS)
        theirs += torch_trainer_baseline.measure(THEIR_TRIALS)
    mine, other = statistics.median(ours), statistics.median(theirs)
    report(
        "turnaround",
        [
            Result("warm gang", mine, "s"),
            Result("TorchTrainer inside Tune", other, "s"),
            Result("times shorter", other / mine, "x", f">= {GOAL}", other / mine >= GOAL),
        ],
    )


def measure(trials: int) -> list[float]:
    """Seconds from each trial's end to the next one's first step; `trials` - 1 values."""
    with tempfile.TemporaryDirectory() as folder:
        words = " ".join(str(number % 50) for number in range(2000))
        for split in ("train", "valid", "test"):
            Path(folder, f"{split}.txt").write_text(words if split == "train" else words[:200])
        Path(folder, "study.yaml").write_text(yaml.safe_dump(_study(trials)))
        subprocess.run(
            [sys.executable, "-m", "hpo", "start", "study.yaml"],
            cwd=folder,
            env={**os.environ, "HPO_CACHE_DIR": folder},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        runs = [Path(folder, "runs", "turnaround", f"trial-{n:04d}") for n in range(trials)]
        firsts = [_written(run / "checkpoints" / "step-00000001" / "progress.json") for run in runs]
        lasts = [_written(run / "metrics.jsonl") for run in runs]
    return [first - last for last, first in zip(lasts, firsts[1:], strict=False)]


def _study(trials: int) -> dict[str, object]:
    return {
        "study": "turnaround",
        "sampler": {"name": "random"},
        "budget": {"trials": trials},
        "resources": {"ranks": torch_trainer_baseline.RANKS},
        "train": {
            "steps": 2,
            "eval_every": 1,
            "data": {"name": "text", "context": 16, "batch_size": 8,
                     "train": "train.txt", "valid": "valid.txt", "test": "test.txt"},
            "model": {"layers": 2, "d_model": 32, "heads": 2, "d_ff": 64},
        },
        "space": {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-3}},
    }  # fmt: skip


def _written(file: Path) -> float:
    return file.stat().st_mtime_ns / 1e9


if __name__ == "__main__":
    main()
