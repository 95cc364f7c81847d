"""SBLD's analysis: what it measures, in runs that are interrupted and on several ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.processes import measured, run_ranks, same, state, train_here
from trainer.config.sections import ModelConfig
from trainer.config.train import resolve
from trainer.engine.base import Engine
from trainer.engine.distributed import World
from trainer.measuring.sensitivity import loss_rises
from trainer.model.layerdrop import Mask
from trainer.model.transformer import LanguageModel
from trainer.run import Run

pytestmark = pytest.mark.slow

Tiny = Callable[..., dict[str, Any]]
# Of 12 steps, measures at steps 3, 4 and 5: a checkpoint after step 4 is in the middle.
SBLD = {"analysis_start_fraction": 0.25, "analysis_steps": 3, "ramp_fraction": 0.25}
# Each policy so that it drops something, and so that it never does.
DROPPING: dict[str, dict[str, Any]] = {
    "static": {"p_init": 0.5},
    "linear": {"p_init": 0.9},
    "cosine": {"p_init": 0.9},
    "piecewise": {"points": [[0.0, 0.1], [1.0, 0.9]]},
    "pld": {"theta_bar": 0.2},
    "sbld": {"p_init": 0.6, **SBLD},
}
NEVER: dict[str, dict[str, Any]] = {
    "static": {"p_init": 0.0},
    "linear": {"p_init": 0.0, "p_final": 0.0},
    "cosine": {"p_init": 0.5, "caps": {1: 0.0, 2: 0.0, 3: 0.0}},
    "piecewise": {"points": [[0.0, 0.0]]},
    "pld": {"theta_bar": 1.0},
    "sbld": {"p_init": 0.0, **SBLD},
}


def masks_of(world: World, document: dict[str, Any]) -> tuple[list[list[Mask]], dict[str, float]]:
    """The masks of every step of a run on this rank, and its last metrics."""
    drawn: list[list[Mask]] = []
    take_step = Engine.step

    def step(engine: Engine, number: int, batch: Any, masks: Any, lr: float) -> torch.Tensor:
        drawn.append(masks)
        return take_step(engine, number, batch, masks, lr)

    with pytest.MonkeyPatch.context() as patch, closing(Run(resolve(document, ""), world)) as run:
        patch.setattr(Engine, "step", step)
        metrics = run.advance().metrics
    return drawn, metrics


def all_masks(world: World, documents: list[dict[str, Any]]) -> list[Any]:
    """`masks_of` each document, one after the other."""
    return [masks_of(world, document) for document in documents]


def test_all_ranks_draw_the_same_masks_and_one_rank_alone_too(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    def documents(ranks: int) -> list[dict[str, Any]]:
        return [
            tiny(
                tmp_path / str(ranks) / name,
                eval_every=12,
                layerdrop={"policy": name, **drop},
                model={"dropout": 0.0},
            )
            for name, drop in DROPPING.items()
        ]

    first, second = run_ranks(2, all_masks, documents(2))
    assert first == second
    for (masks, metrics), (alone, its_metrics) in zip(
        first, all_masks(world, documents(1)), strict=True
    ):
        assert masks == alone
        assert any(0.0 in mask for micro_masks in masks for mask in micro_masks)
        for name in (name for name in metrics if name.startswith("sensitivity")):
            assert metrics[name] == pytest.approx(its_metrics[name], abs=1e-6)


def test_training_with_a_policy_that_never_drops_is_training_with_none(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    train_here(tiny(tmp_path / "none", eval_every=12, layerdrop={"policy": "none"}), world)
    for name, drop in NEVER.items():
        document = tiny(tmp_path / name, eval_every=12, layerdrop={"policy": name, **drop})
        train_here(document, world)
        assert state(tmp_path / name) == state(tmp_path / "none"), name
        for line, plain in zip(measured(tmp_path / name), measured(tmp_path / "none"), strict=True):
            assert plain.items() <= line.items()


def test_an_analysis_interrupted_in_the_middle_and_after_it_goes_on_bit_for_bit(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    drop = {"layerdrop": {"policy": "sbld", **DROPPING["sbld"]}}
    train_here(tiny(tmp_path / "whole", **drop), world)
    for step in (4, 8, 12):
        with closing(Run(resolve(tiny(tmp_path / "run", **drop), ""), world)) as run:
            assert run.advance().step == step
    assert same(tmp_path / "run", tmp_path / "whole")
    middle, after, end = (
        {name: value for name, value in line.items() if name.startswith("sensitivity")}
        for line in measured(tmp_path / "run")
    )
    assert list(middle) == [f"sensitivity_layer_{layer}" for layer in (1, 2, 3)]
    assert middle != after == end
    assert [line["drop_probability"] for line in measured(tmp_path / "run")] == pytest.approx(
        [0.0, 0.6 * 1 / 3, 0.6]
    )


def test_a_checkpoint_from_before_there_were_sensitivities_still_reads(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    train_here(tiny(tmp_path / "whole"), world)
    with closing(Run(resolve(tiny(tmp_path / "run"), ""), world)) as run:
        run.advance()
    (manifest,) = (tmp_path / "run" / "checkpoints").glob("*/progress.json")
    old = json.loads(manifest.read_text())
    del old["progress"]["sensitivity"]
    manifest.write_text(json.dumps(old))
    train_here(tiny(tmp_path / "run"), world)
    assert same(tmp_path / "run", tmp_path / "whole")


def test_a_layer_that_does_nothing_is_the_least_sensitive_of_a_trained_model(world: World) -> None:
    model = LanguageModel(ModelConfig(layers=3, d_model=16, heads=2, d_ff=32), 30, 8)
    model.initialize(seed=0)
    idle = (model.blocks[1].attention_out.weight, model.blocks[1].contract.weight)
    for weight in idle:
        weight.requires_grad_(False).zero_()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    # A token follows from the two before it: attention is needed, and so are the layers.
    rows = np.random.default_rng(0).integers(30, size=(12, 9))
    for column in range(2, 9):
        rows[:, column] = (rows[:, column - 1] + 3 * rows[:, column - 2]) % 30
    inputs, targets = (torch.from_numpy(part.copy()) for part in (rows[:, :-1], rows[:, 1:]))
    for _ in range(60):
        optimizer.zero_grad()
        model(inputs, targets)[0].backward()
        optimizer.step()

    rises = loss_rises(model, world, rows, micro_steps=3)
    assert model.training
    assert rises[1] == 0.0
    assert min(rises[0], rises[2]) > 0.1
    model.eval()
    with torch.no_grad():
        expected = model(inputs, targets, (0.0, 1.0, 1.0))[0] - model(inputs, targets)[0]
    assert rises[0] == pytest.approx(expected.item(), abs=1e-5)
