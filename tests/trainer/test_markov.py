"""A model of a source whose entropy is known comes to it, and never under it.

A model that saw what it has to predict, or learned valid by heart, would go under; one that is
trained, masked or measured wrongly stays over.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.trainer.processes import train_here
from trainer.engine.distributed import World

pytestmark = pytest.mark.slow

STATES = 6  # five words and the end of a line
TOKENS = {"train": 150_000, "valid": 30_000, "test": 100}


def second_order_source(seed: int) -> NDArray[np.float64]:
    """p(c | a, b), shape (a, b, c): each pair of tokens prefers other followers."""
    drawn = np.random.default_rng(seed).dirichlet(np.full(STATES, 0.4), (STATES, STATES))
    return 0.97 * drawn + 0.03 / STATES


def entropy_rate(source: NDArray[np.float64]) -> float:
    """Nats per token: the mean entropy of p(. | a, b) over the stationary law of pairs (a, b)."""
    pairs = STATES * STATES
    moves = np.zeros((STATES, STATES, STATES, STATES))  # (a, b) to (b, c)
    for b in range(STATES):
        moves[:, b, b, :] = source[:, b, :]
    stationarity = moves.reshape(pairs, pairs).T - np.eye(pairs)
    system = np.vstack([stationarity, np.ones(pairs)])
    law = np.linalg.lstsq(system, np.append(np.zeros(pairs), 1.0), rcond=None)[0]
    entropies = -(source * np.log(source)).sum(axis=-1).ravel()
    return float(law @ entropies)


def draw(source: NDArray[np.float64], length: int, seed: int) -> list[int]:
    """Tokens of the source, from some pair on."""
    uniform = np.random.default_rng(seed).random(length)
    cumulative = source.cumsum(axis=-1).tolist()
    tokens = [0, 0]
    for u in uniform:
        row = cumulative[tokens[-2]][tokens[-1]]
        tokens.append(next(c for c in range(STATES) if u < row[c] or c == STATES - 1))
    return tokens


def as_text(tokens: list[int]) -> str:
    """The tokens as words, state 0 being the end of a line; what follows the last is left out."""
    text = " ".join("\n" if token == 0 else f"w{token}" for token in tokens)
    return text[: text.rindex("\n") + 1]


def mean_nll(source: NDArray[np.float64], tokens: list[int]) -> float:
    """Nats per token of the tokens under the source itself."""
    a, b, c = tokens[:-2], tokens[1:-1], tokens[2:]
    return float(-np.log(source[a, b, c]).mean())


def test_a_model_reaches_the_perplexity_of_a_known_source(world: World, tmp_path: Path) -> None:
    source = second_order_source(seed=1)
    rate = entropy_rate(source)
    texts = {split: draw(source, n, seed=n) for split, n in TOKENS.items()}
    sampling_error = mean_nll(source, texts["valid"]) - rate
    assert abs(sampling_error) < 0.01

    data = {"name": "text", "context": 32, "batch_size": 32}
    for split, tokens in texts.items():
        data[split] = str(tmp_path / f"{split}.txt")
        Path(data[split]).write_text(as_text(tokens))
    document = {
        "output_dir": str(tmp_path / "run"),
        "steps": 900,
        "eval_every": 900,
        "threads": 1,
        "data": data,
        "model": {"layers": 2, "d_model": 32, "heads": 2, "d_ff": 64, "dropout": 0.0},
        "optim": {"lr": 5e-3, "warmup_steps": 40, "weight_decay": 0.0},
        "evaluation": {"stride": 16},
    }
    [report] = train_here(document, world)
    found = math.log(report.metrics["valid_ppl"])
    assert abs(math.exp(found - rate) - 1) < 0.03
    assert found > rate + sampling_error - 0.002, "better than the source itself"
