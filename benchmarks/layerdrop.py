"""What dropping layers saves of a training step, against the most that it could save.

    python -m benchmarks.layerdrop [CASE...]

The ideal speed-up is 1 / (1 - p f), where f is the layers' share of a step and p the share of
them that the drawn masks skip. f is measured on models that were built without the layers, whose
steps so lack also a layer's share of the optimizer and of ZeRO's copies, which a dropped layer
still pays: a line through their times gives the step of a model with none. Every step is one of
`trainer.engine.base.Engine`. All sides take theirs in turn, so that a busy machine slows them all.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.report import Result, report

if TYPE_CHECKING:
    from trainer.config.train import TrainConfig
    from trainer.engine.base import Engine
    from trainer.engine.distributed import World

WARM_UP = 2  # rounds that are not counted
RATES = (0.2, 0.5)
GOAL = 0.9  # of the ideal speed-up


@dataclass(frozen=True)
class Case:
    """A model and its batch. `depths` are those that f is measured with; the deepest drops."""

    precision: str
    depths: tuple[int, ...] = (4, 8, 12)
    d_model: int = 256
    vocabulary: int = 10_000
    sequences: int = 16
    context: int = 64
    rounds: int = 32


CASES = {
    "d256-fp32": Case("fp32"),
    "d256-bf16": Case("bf16"),
    "d256-fp16": Case("fp16", sequences=2, rounds=8),  # emulated on a CPU, and slow
}


@dataclass(frozen=True)
class Step:
    """One timed step."""

    kept: int  # layers
    seconds: float


def main(names: list[str]) -> None:
    """Measure the cases; report f, and what each rate gains and could have gained."""
    from trainer.engine.distributed import from_environment, leave

    world = from_environment()
    results = [
        result for name in names or CASES for result in _results(name, _measure(name, world))
    ]
    leave()
    report("layerdrop", results)


def _results(name: str, steps: dict[tuple[int, float], list[Step]]) -> list[Result]:
    depth = max(CASES[name].depths)
    seconds = {side: _mean_seconds(taken) for side, taken in steps.items()}
    plain = {layers: seconds[layers, 0.0] for layers in CASES[name].depths}
    per_layer, _ = statistics.linear_regression(list(plain), list(plain.values()))
    share = depth * per_layer / plain[depth]
    results = [
        Result(f"{name}: step without dropping", plain[depth], "s"),
        Result(f"{name}: f, the layers' share", share, ""),
    ]
    for rate in RATES:
        skipped = 1 - statistics.mean(step.kept for step in steps[depth, rate]) / depth
        ideal = 1 / (1 - skipped * share)
        speed_up = plain[depth] / seconds[depth, rate]
        ratio = speed_up / ideal
        results += [
            Result(f"{name} p={rate}: layers skipped", skipped, ""),
            Result(f"{name} p={rate}: speed-up, ideally {ideal:.3f}", speed_up, ""),
            Result(f"{name} p={rate}: of the ideal", ratio, "", f">= {GOAL}", ratio >= GOAL),
        ]
    return results


def _mean_seconds(steps: list[Step]) -> float:
    # The mean over the masks drawn, but a median among steps of equal work: hiccups do not count.
    by_kept = defaultdict(list)
    for step in steps:
        by_kept[step.kept].append(step.seconds)
    return sum(len(group) * statistics.median(group) for group in by_kept.values()) / len(steps)


def _measure(name: str, world: World) -> dict[tuple[int, float], list[Step]]:
    """The timed steps by (layers of the model, drop rate)."""
    import torch

    from trainer.model.layerdrop import make_policy

    case = CASES[name]
    torch.set_flush_denormal(True)
    with ExitStack() as closing:
        engines = {}
        for layers in case.depths:
            engines[layers] = _engine(_config(case, layers, 0.0), case, world)
            closing.callback(engines[layers].close)
        sides = [(layers, 0.0) for layers in case.depths]
        sides += [(max(case.depths), rate) for rate in RATES]
        steps: dict[tuple[int, float], list[Step]] = {side: [] for side in sides}
        policies = {side: make_policy(_config(case, *side)) for side in sides}
        for number in range(WARM_UP + case.rounds):
            for side in sides:
                mask = policies[side].mask(number, 0)
                seconds = _timed_step(engines[side[0]], case, number, mask)
                steps[side].append(Step(sum(scale > 0 for scale in mask), seconds))
    return {side: taken[WARM_UP:] for side, taken in steps.items()}


def _timed_step(engine: Engine, case: Case, number: int, mask: tuple[float, ...]) -> float:
    import numpy as np

    from trainer.data.batches import Batch

    shape = (case.sequences, case.context + 1)
    tokens = np.random.default_rng(number).integers(case.vocabulary, size=shape)
    batch = Batch(tokens, np.zeros(case.sequences, dtype=np.int64))
    started = time.perf_counter()
    engine.step(number, batch, [mask], 5e-4).tolist()
    return time.perf_counter() - started


def _engine(config: TrainConfig, case: Case, world: World) -> Engine:
    from trainer.engine.deepspeed import DeepSpeedEngine
    from trainer.model.transformer import DTYPES, LanguageModel

    dtype = DTYPES[case.precision]
    model = LanguageModel(config.model, case.vocabulary, case.context, dtype)
    model.initialize(config.seed)
    return DeepSpeedEngine(config, world, model)


def _config(case: Case, layers: int, rate: float) -> TrainConfig:
    from trainer.config.train import resolve

    document = {
        "precision": case.precision,
        "data": {"context": case.context, "batch_size": case.sequences},
        "model": {
            "layers": layers, "d_model": case.d_model, "heads": case.d_model // 64,
            "d_ff": 4 * case.d_model, "dropout": 0.1,
        },
        "layerdrop": {"policy": "static", "p_init": rate},
    }  # fmt: skip
    return resolve(document, "benchmark")


if __name__ == "__main__":
    main(sys.argv[1:])
