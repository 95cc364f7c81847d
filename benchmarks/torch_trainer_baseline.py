"""What a trial costs where Ray runs a two-rank DeepSpeed training in the way it documents.

    python -m benchmarks.torch_trainer_baseline

Every trial is a Tune function that starts a TorchTrainer: two new worker processes, which import
torch and DeepSpeed, join a gloo group, build a ZeRO-2 engine, take a few optimizer steps and
report. The trials run one after the other, of a tiny model on one core a rank. The program imports
nothing of the product, which it is the measure of, and pays no cost that its user could avoid.
"""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from benchmarks.report import Result, report

RANKS = 2
STEPS = 5
TRIALS = 3  # two times from one trial to the next

DEEPSPEED_CONFIG = {
    "train_micro_batch_size_per_gpu": 4,
    # The default bucket, 5e8 numbers, is allocated whole.
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 5_000_000},
}


def measure(trials: int) -> list[float]:
    """Seconds from each trial's last optimizer step to the end of the next one's first.

    Returns `trials` - 1 values; the start of Ray and of the first trial is in none. Raises
    RuntimeError if a trial failed.
    """
    with tempfile.TemporaryDirectory() as folder, _ray():
        results = tune.Tuner(
            _trial,
            param_space={"stamps": folder, "trial": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(max_concurrent_trials=1),
            run_config=tune.RunConfig(storage_path=str(Path(folder, "tune")), verbose=0),
        ).fit()
        if results.errors:
            raise RuntimeError(f"a trial failed: {results.errors[0]}")
        stamps = sorted(
            tuple(map(float, path.read_text().split())) for path in Path(folder).glob("*.stamps")
        )
    assert len(stamps) == trials
    return [first - last for (_, last), (first, _) in itertools.pairwise(stamps)]


@contextmanager
def _ray() -> Iterator[None]:
    # A CPU for the trial's driver beside those of the ranks, or none would ever be placed.
    ray.init(
        address="local",
        num_cpus=RANKS + 1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    try:
        yield
    finally:
        ray.shutdown()


def _trial(config: Mapping[str, Any]) -> None:
    TorchTrainer(
        _rank,
        train_loop_config=dict(config),
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=RANKS, use_gpu=False),
        run_config=ray.train.RunConfig(
            name=f"trial-{config['trial']}",
            storage_path=str(Path(config["stamps"], "train")),
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def _rank(config: Mapping[str, Any]) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops
    import torch

    # DeepSpeed would compile it for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=DEEPSPEED_CONFIG)
    step_times = []
    for _ in range(STEPS):
        loss = engine(torch.randn(4, 64)).square().mean()
        engine.backward(loss)
        engine.step()
        step_times.append(time.time())
    if ray.train.get_context().get_world_rank() == 0:
        stamps = Path(config["stamps"], f"{config['trial']}.stamps")
        stamps.write_text(f"{step_times[0]} {step_times[-1]}")
    ray.train.report({"loss": loss.item()})


def main() -> None:
    seconds = measure(TRIALS)
    report(
        "torch_trainer_baseline",
        [
            Result(f"trial {number} to {number + 1}", value, "s")
            for number, value in enumerate(seconds)
        ],
    )


if __name__ == "__main__":
    main()
