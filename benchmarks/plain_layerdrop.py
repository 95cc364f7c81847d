"""Dropping layers by our trainer, and by a model written anew beside it.

    python -m benchmarks.plain_layerdrop

A four-layer model pays dearly for dropping layers at random, and one may ask whether that is a
fault of ours. So `configs/train/tiny.yaml` is trained without dropping and with p = 0.2, two seeds
each, by `python -m trainer` and by the plain PyTorch below. That takes the same token ids, and no
other line of ours: its own Transformer, with the usual LayerNorms and biases, its own loop,
batches, schedule, random numbers and evaluation. Ours may end no more than a tenth higher.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.report import Result, report
from trainer.config.sections import ModelConfig
from trainer.config.train import load
from trainer.data.splits import load_splits

CONFIG = Path(__file__).parents[1] / "configs" / "train" / "tiny.yaml"
DROPPED = 0.2
SEEDS = (0, 1)
GOAL = 1.1  # our perplexity over the plain one's: two seeds of one side differ by more


class PlainBlock(nn.Module):
    """A pre-LN layer with everything that ours leaves out: gains and biases."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.heads, self.dropout = model.heads, model.dropout
        self.first_norm, self.second_norm = nn.LayerNorm(model.d_model), nn.LayerNorm(model.d_model)
        self.into_heads = nn.Linear(model.d_model, 3 * model.d_model)
        self.out_of_heads = nn.Linear(model.d_model, model.d_model)
        self.up = nn.Linear(model.d_model, model.d_ff)
        self.down = nn.Linear(model.d_ff, model.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        parts = self.into_heads(self.first_norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        mixed = self.out_of_heads((weights @ v).transpose(1, 2).flatten(2))
        x = x + F.dropout(mixed, self.dropout, self.training)
        fed = self.down(F.gelu(self.up(self.second_norm(x))))
        return x + F.dropout(fed, self.dropout, self.training)


class PlainModel(nn.Module):
    """Logits of the next token, from tied embeddings and learned positions."""

    def __init__(self, model: ModelConfig, vocabulary: int, context: int) -> None:
        super().__init__()
        self.dropout = model.dropout
        self.tokens = nn.Embedding(vocabulary, model.d_model)
        self.positions = nn.Embedding(context, model.d_model)
        self.blocks = nn.ModuleList(PlainBlock(model) for _ in range(model.layers))
        self.norm = nn.LayerNorm(model.d_model)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                into_stream = name.endswith(("out_of_heads.weight", "down.weight"))
                deviation = 0.02 / math.sqrt(2 * model.layers) if into_stream else 0.02
                nn.init.normal_(weight, std=deviation)

    def forward(self, inputs: Tensor, kept: list[bool] | None = None) -> Tensor:
        """(B, T) -> (B, T, V)"""
        x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
        x = F.dropout(x, self.dropout, self.training)
        for index, block in enumerate(self.blocks):
            if kept is None or kept[index]:
                x = block(x)
        return self.norm(x) @ self.tokens.weight.T  # type: ignore[no-any-return]


def main() -> None:
    """Train all eight; report either side's perplexities, and ours over the plain one's."""
    results = []
    for p in (0.0, DROPPED):
        found = {"ours": ours, "plain": plain}
        ppl = {side: [train(p, seed) for seed in SEEDS] for side, train in found.items()}
        mean = {side: statistics.mean(each) for side, each in ppl.items()}
        for side, each in ppl.items():
            print(f"{side}, p {p}: valid perplexities {', '.join(f'{x:.1f}' for x in each)}")
            results.append(Result(f"{side}: valid_ppl at p {p}", mean[side], ""))
        ratio = mean["ours"] / mean["plain"]
        results.append(Result(f"ours over plain at p {p}", ratio, "x", f"<= {GOAL}", ratio <= GOAL))
    report("plain_layerdrop", results)


def ours(p: float, seed: int) -> float:
    """The valid perplexity that our trainer ends with."""
    with tempfile.TemporaryDirectory() as folder:
        policy = ["layerdrop.policy=static", f"layerdrop.p_init={p}"]
        given = [f"output_dir={folder}/run", "threads=1", f"seed={seed}", *policy]
        command = [sys.executable, "-m", "trainer", str(CONFIG), *given]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        *_, last = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(last)["valid_ppl"])


def plain(p: float, seed: int) -> float:
    """The valid perplexity that the plain model ends with."""
    config = load(str(CONFIG), [])
    optim, context = config.optim, config.data.context
    splits = load_splits(config.data)
    train, valid = (torch.tensor(splits.tokens(split).tolist()) for split in ("train", "valid"))
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = PlainModel(config.model, len(splits.vocabulary), context)
    settings = {"betas": optim.betas, "weight_decay": optim.weight_decay}
    adamw = torch.optim.AdamW(model.parameters(), lr=optim.lr, **settings)
    batches = _batches(train, context, config.data.batch_size)
    for step in range(config.steps):
        warm = (step + 1) / optim.warmup_steps
        done = (step - optim.warmup_steps) / (config.steps - optim.warmup_steps)
        fraction = warm if step < optim.warmup_steps else (1.0 + math.cos(math.pi * done)) / 2
        adamw.param_groups[0]["lr"] = optim.lr * fraction
        kept = (torch.rand(config.model.layers) >= p).tolist()
        if not any(kept):
            kept[int(torch.randint(config.model.layers, ()))] = True
        blocks = next(batches)
        logits = model(blocks[:, :-1], kept)
        F.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
        adamw.step()
        adamw.zero_grad(set_to_none=False)  # as under ZeRO: a skipped layer decays and drifts on
    return _perplexity(model, valid, context)


def _batches(tokens: Tensor, context: int, rows: int) -> Iterator[Tensor]:
    """(rows, context + 1) each, epoch after epoch."""
    while True:
        starts = torch.randperm((len(tokens) - 1) // context) * context
        for first in range(0, len(starts) - rows + 1, rows):
            chosen = starts[first : first + rows].tolist()
            yield torch.stack([tokens[start : start + context + 1] for start in chosen])


@torch.no_grad()
def _perplexity(model: PlainModel, tokens: Tensor, context: int) -> float:
    model.eval()
    total = 0.0
    for start in range(0, len(tokens) - 1, context):
        window = tokens[start : start + context + 1]
        logits = model(window[None, :-1])[0]
        total += F.cross_entropy(logits, window[1:], reduction="sum").item()
    return math.exp(total / (len(tokens) - 1))


if __name__ == "__main__":
    main()
