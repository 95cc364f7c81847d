"""Tokens per second of our trainer under ZeRO-2, against plain PyTorch loops of the same model.

    python -m benchmarks.throughput [CASE...]

One rank against a loop with a fused AdamW; two ranks against PyTorch's DistributedDataParallel
on the same process group. The case `gpu` is the recipe's full model beside a compiled loop, and
says what share of the card's peak each reaches. Both sides train with dropout and clip gradients,
and take their steps in turn, one of ours, one of theirs, so that a busy machine slows both. Ours
is the whole of an optimizer step of `trainer.run.Run`: batch, masks, engine, the ranks' agreement.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import Result, report

if TYPE_CHECKING:
    import torch

WARM_UP = 3  # steps of each side that are not counted
ROUNDS = 3  # fresh processes: where the system places them makes a difference of some per cent


@dataclass(frozen=True)
class Case:
    """A model, its batch, and the share of the plain loop's speed that is asked of us."""

    layers: int
    d_model: int
    vocabulary: int
    sequences: int
    context: int
    precision: str
    ranks: int
    steps: int  # of each side
    goal: float
    gpu: bool = False  # there, the plain loop is compiled


CASES = {
    "d64": Case(4, 64, 4_200, 16, 64, "fp32", 1, 150, 0.90),
    "d128": Case(4, 128, 10_000, 16, 64, "fp32", 1, 60, 0.95),
    "d512-bf16": Case(12, 512, 10_000, 32, 256, "bf16", 1, 7, 1.0),
    "d128-two-ranks": Case(4, 128, 10_000, 16, 64, "fp32", 2, 80, 0.95),
    "gpu": Case(12, 512, 10_000, 128, 256, "bf16", 1, 60, 1.0, gpu=True),
}
# Dense bf16 of a card, FLOP/s, from its data sheet.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "L40S": 362e12}


def main(names: list[str]) -> None:
    """Measure the cases and report tokens per second and ratios."""
    results = []
    for name in names or [name for name, case in CASES.items() if not case.gpu]:
        case = CASES[name]
        rounds = [_measure(name, case) for _ in range(ROUNDS)]
        ours, theirs = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
        ratio = statistics.median(other / mine for mine, other in rounds)
        tokens = case.sequences * case.context
        other = "DDP" if case.ranks > 1 else "plain PyTorch"
        results += [
            Result(f"{name}: trainer", tokens / ours, "tokens/s"),
            Result(f"{name}: {other}", tokens / theirs, "tokens/s"),
            Result(f"{name}: ratio", ratio, "", f">= {case.goal}", ratio >= case.goal),
            *(_shares_of_peak(name, case, tokens / ours, tokens / theirs) if case.gpu else []),
        ]
    report("throughput", results)


def _shares_of_peak(name: str, case: Case, ours: float, theirs: float) -> list[Result]:
    """Model FLOPs a second over the card's peak: forward and backward, nothing recomputed."""
    import torch

    card = torch.cuda.get_device_name()
    peak = next((peak for known, peak in PEAKS.items() if known in card), None)
    if peak is None:
        return []
    width, layers = case.d_model, case.layers
    products = 12 * layers * width**2 + case.vocabulary * width
    causal_attention = layers * case.context * width
    flops = 6 * (products + causal_attention)  # a token
    return [
        Result(f"{name}: trainer, share of the peak of {card}", flops * ours / peak, ""),
        Result(f"{name}: plain PyTorch, share of the peak", flops * theirs / peak, ""),
    ]


def _measure(name: str, case: Case) -> tuple[float, float]:
    """Median seconds of our step and of theirs, measured by rank 0 of fresh processes."""
    from trainer.engine.distributed import free_port

    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder), case.vocabulary)
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = []
        for rank in range(case.ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks}
            environment = {
                **os.environ, **address, **{key: str(value) for key, value in place.items()},
                "HPO_CACHE_DIR": folder,
            }  # fmt: skip
            command = [sys.executable, "-m", "benchmarks.throughput", "--rank", name, folder]
            ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        if any(process.wait() for process in ranks):
            raise RuntimeError(f"{name}: a rank failed")
        ours, theirs = json.loads(Path(folder, "seconds.json").read_text())
    return ours, theirs


def _rank(name: str, folder: Path) -> None:
    from trainer.config.train import resolve
    from trainer.engine.distributed import from_environment, leave
    from trainer.run import Run, StepInfo

    case = CASES[name]
    config = resolve(_document(case, folder), name)
    world = from_environment()
    ours: list[float] = []
    theirs: list[float] = []

    def in_turn(info: StepInfo) -> None:
        ours.append(info.seconds)
        started = time.perf_counter()
        plain_step(len(theirs))
        theirs.append(time.perf_counter() - started)

    with closing(Run(config, world, in_turn)) as run:
        plain_step = _plain_loop(case, folder, world.device)
        run.advance()
    if world.rank == 0:
        medians = [statistics.median(times[WARM_UP:]) for times in (ours, theirs)]
        (folder / "seconds.json").write_text(json.dumps(medians))
    leave()


def _plain_loop(case: Case, folder: Path, device: torch.device) -> Callable[[int], None]:
    """The loop that anyone would write; a call is one optimizer step."""
    import torch
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel

    from trainer.config.train import resolve
    from trainer.data.batches import TrainBatches
    from trainer.data.splits import load_splits
    from trainer.model.transformer import DTYPES, LanguageModel

    config = resolve(_document(case, folder), "plain")
    splits = load_splits(config.data)
    model = LanguageModel(
        config.model, len(splits.vocabulary), case.context, DTYPES[case.precision]
    )
    model.initialize(0)

    class Plain(torch.nn.Module):
        """The trainer's Transformer with torch's own output layer and loss."""

        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            with torch.autocast(device.type, model.dtype, enabled=model.dtype != torch.float32):
                logits = F.linear(model.hidden(inputs), model.embedding)
            return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    plain: torch.nn.Module = Plain().to(device)
    if case.gpu:
        plain = torch.compile(plain)  # type: ignore[assignment]
    if case.ranks > 1:
        plain = DistributedDataParallel(plain)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=5e-4, weight_decay=0.01, fused=True)
    batches = TrainBatches(splits.tokens("train"), case.context, case.sequences, 0)
    share = case.sequences // case.ranks
    first = int(os.environ["RANK"]) * share

    def step(number: int) -> None:
        tokens = torch.from_numpy(batches.at(number).tokens[first : first + share]).to(device)
        loss = plain(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def _document(case: Case, folder: Path) -> dict[str, object]:
    return {
        "output_dir": str(folder / "run"),
        "steps": case.steps,
        "eval_every": case.steps,
        "precision": case.precision,
        "threads": max(1, len(os.sched_getaffinity(0)) // case.ranks),
        "data": {
            "name": "text", "context": case.context, "batch_size": case.sequences,
            **{split: str(folder / f"{split}.txt") for split in ("train", "valid", "test")},
        },
        "model": {
            "layers": case.layers, "d_model": case.d_model, "heads": max(4, case.d_model // 64),
            "d_ff": 4 * case.d_model, "dropout": 0.1,
        },
    }  # fmt: skip


def write_text(folder: Path, vocabulary: int) -> None:
    """Write train.txt, valid.txt and test.txt of that vocabulary, <unk> and <eos> counted."""
    words = [f"w{number}" for number in range(vocabulary - 2)]  # and <unk> and <eos>
    (folder / "train.txt").write_text("\n".join(" ".join(words) for _ in range(20)))
    for split in ("valid", "test"):
        (folder / f"{split}.txt").write_text(" ".join(words[:100]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        _rank(sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1:])
