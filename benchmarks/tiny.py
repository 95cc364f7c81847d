"""A study whose trials take seconds, for tests and benchmarks that need many."""

from __future__ import annotations

from typing import Any

STUDY: dict[str, Any] = {
    "study": "tiny",
    "sampler": {"name": "random", "seed": 1},
    "budget": {"trials": 2},
    "resources": {"ranks": 2, "cpus_per_rank": 1, "concurrent_trials": 1},
    "train": {
        "steps": 60,
        "eval_every": 20,
        "data": {"name": "pydocs", "context": 32, "batch_size": 8},
        "model": {"layers": 2, "d_model": 32, "heads": 2, "d_ff": 64, "dropout": 0.1},
        "layerdrop": {"policy": "linear"},
        "optim": {"warmup_steps": 5},
    },
    "space": {
        "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "layerdrop.p_init": {"type": "float", "low": 0.05, "high": 0.4},
    },
}
