"""Small engines, and the same training in plain PyTorch, written out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from trainer.config.train import TrainConfig, resolve
from trainer.data.batches import Batch
from trainer.engine.base import Engine
from trainer.engine.distributed import World
from trainer.engine.schedule import learning_rate
from trainer.model.layerdrop import Mask, make_policy
from trainer.model.transformer import DTYPES, LanguageModel
from trainer.run import ENGINES

VOCABULARY, STEPS = 60, 20


def config(**sections: Any) -> TrainConfig:
    document = {
        "seed": 5,
        "steps": STEPS,
        "data": {"context": 8, "batch_size": 8},
        "model": {"layers": 3, "d_model": 16, "heads": 2, "d_ff": 32, "dropout": 0.0},
        "optim": {"lr": 1e-2, "weight_decay": 0.1, "warmup_steps": 5, "grad_clip": 0.5},
    }
    for name, section in sections.items():
        nested = isinstance(section, dict)
        document[name] = {**document.get(name, {}), **section} if nested else section  # type: ignore[dict-item]
    return resolve(document, "test")


def new_model(config: TrainConfig) -> LanguageModel:
    model = LanguageModel(config.model, VOCABULARY, config.data.context, DTYPES[config.precision])
    model.initialize(config.seed)
    return model


def new_engine(config: TrainConfig, world: World, model: LanguageModel | None = None) -> Engine:
    return ENGINES[config.engine](config, world, model or new_model(config))


def batch(step: int) -> Batch:
    # Each token follows from the one before, so that there is something to learn.
    rng = np.random.default_rng(step)
    first, stride = rng.integers(VOCABULARY, size=(8, 1)), np.arange(9)
    return Batch((first + 7 * stride) % VOCABULARY, 9 * np.arange(8))


def masks(config: TrainConfig, step: int) -> list[Mask]:
    policy = make_policy(config)
    return [policy.mask(step, micro) for micro in range(config.optim.accumulation)]


def train(engine: Engine, config: TrainConfig, first: int = 0, last: int = STEPS) -> list[float]:
    return [
        engine.step(
            step, batch(step), masks(config, step), learning_rate(config.optim, STEPS, step)
        )[0].item()
        for step in range(first, last)
    ]


def plain_learning_rate(config: TrainConfig, step: int) -> float:
    optim = config.optim
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    angle = math.pi * (step - optim.warmup_steps) / (STEPS - optim.warmup_steps)
    floor = optim.lr * optim.lr_final_fraction
    return floor + (optim.lr - floor) * (1 + math.cos(angle)) / 2


def plain_training(config: TrainConfig) -> tuple[list[float], torch.optim.AdamW, LanguageModel]:
    """The reference: no DeepSpeed. A dropped layer's gradient is zero, not none."""
    model, optim = new_model(config), config.optim
    adamw = torch.optim.AdamW(
        model.parameters(), betas=optim.betas, weight_decay=optim.weight_decay, fused=False
    )
    losses = []
    for step in range(STEPS):
        adamw.param_groups[0]["lr"] = plain_learning_rate(config, step)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        micro_losses = []
        micro_batches = np.split(batch(step).tokens, optim.accumulation)
        for rows, mask in zip(micro_batches, masks(config, step), strict=True):
            tokens = torch.from_numpy(rows)
            hidden = model.hidden(tokens[:, :-1], mask)
            logits = torch.nn.functional.linear(hidden, model.embedding)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss = loss / optim.accumulation
            loss.backward()
            micro_losses.append(loss.item())
        gradients = [
            parameter.grad for parameter in model.parameters() if parameter.grad is not None
        ]
        norm = torch.sqrt(sum((g.double() ** 2).sum() for g in gradients))
        for gradient in gradients:
            gradient.mul_(min(1.0, optim.grad_clip / (norm.item() + 1e-6)))
        adamw.step()
        losses.append(sum(micro_losses))
    return losses, adamw, model
