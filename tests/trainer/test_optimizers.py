"""The optimizers against their papers' updates, written out in fp64, and in every engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.engines import config, new_engine, new_model, train
from tests.trainer.processes import run_ranks
from trainer.engine.distributed import World
from trainer.engine.optimizers import make_optimizer

pytestmark = pytest.mark.slow

DDP: dict[str, Any] = {"engine": "ddp"}
STAGE_0: dict[str, Any] = {"deepspeed": {"zero_stage": 0}}
STAGE_2: dict[str, Any] = {"deepspeed": {"zero_stage": 2}}
# Learning rates with which each of them learns something in a few steps.
ARMS = [
    ("adamw", 1e-2, DDP),
    ("lamb", 1e-1, DDP),
    ("lamb", 1e-1, STAGE_0),
    ("lion", 2e-3, DDP),
    ("lion", 2e-3, STAGE_0),
    ("lion", 2e-3, STAGE_2),
    ("muon", 1e-2, DDP),
    ("muon", 1e-2, STAGE_0),
]
LR, DECAY, BETA1, BETA2, MOMENTUM, STEPS = 0.01, 0.1, 0.8, 0.95, 0.9, 4


class Plain:
    """One parameter's updates as the papers have them, fp64."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach().double()
        self.mean, self.square, self.steps = torch.zeros_like(self.weight), 0.0, 0

    def adam_direction(self, gradient: Tensor, epsilon: float) -> Tensor:
        self.steps += 1
        self.mean = BETA1 * self.mean + (1 - BETA1) * gradient
        self.square = BETA2 * self.square + (1 - BETA2) * gradient**2
        mean = self.mean / (1 - BETA1**self.steps)
        square = self.square / (1 - BETA2**self.steps)
        return mean / (square.sqrt() + epsilon)

    def adamw(self, gradient: Tensor) -> None:
        update = self.adam_direction(gradient, 1e-8)
        self.weight = self.weight - LR * (update + DECAY * self.weight)

    def lamb(self, gradient: Tensor) -> None:
        update = self.adam_direction(gradient, 1e-6) + DECAY * self.weight
        norm = self.weight.norm().item()
        trust = norm / update.norm().item() if self.weight.dim() == 2 and norm > 0 else 1.0
        self.weight = self.weight - LR * trust * update

    def lion(self, gradient: Tensor) -> None:
        update = torch.sign(BETA1 * self.mean + (1 - BETA1) * gradient)
        self.weight = self.weight - LR * (update + DECAY * self.weight)
        self.mean = BETA2 * self.mean + (1 - BETA2) * gradient

    def muon(self, gradient: Tensor) -> None:
        self.mean = MOMENTUM * self.mean + (1 - MOMENTUM) * gradient
        direction = MOMENTUM * self.mean + (1 - MOMENTUM) * gradient
        direction = direction / direction.norm()
        for _ in range(5):  # the quintic that brings singular values near 1
            square = direction @ direction.T
            direction = (
                3.4445 * direction + (-4.7750 * square + 2.0315 * square @ square) @ direction
            )
        scale = 0.2 * math.sqrt(max(gradient.shape))
        self.weight = self.weight - LR * (scale * direction + DECAY * self.weight)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("adamw", 1e-6), ("lamb", 1e-6), ("lion", 1e-6), ("muon", 4e-4)],  # muon: bf16 inside
)
def test_an_optimizer_takes_the_steps_of_its_paper(name: str, tolerance: float) -> None:
    settings = {"name": name, "betas": [BETA1, BETA2], "momentum": MOMENTUM, "weight_decay": DECAY}
    case = config(engine="ddp", optim={**settings, "lr": LR})
    model, generator = new_model(case), torch.Generator().manual_seed(0)
    optimizer = make_optimizer(case.optim, model)
    plain = {key: Plain(weight) for key, weight in model.named_parameters()}
    for _ in range(STEPS):
        for key, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            update = "adamw" if name == "muon" and not key.startswith("blocks.") else name
            getattr(plain[key], update)(parameter.grad.double())
        optimizer.step()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.detach().double(), plain[key].weight, atol=tolerance, rtol=0.0
        )


def arm(name: str, lr: float, engine: dict[str, Any]) -> Any:
    return config(
        **engine,
        layerdrop={"policy": "static", "p_init": 0.5},
        optim={"name": name, "lr": lr, "accumulation": 2},
    )


def relay(world: World, case: Any, state: Any = None) -> tuple[Any, list[float], Any]:
    """Train 8 steps, unless `state` is after those, and 4 more: both states, and all losses.

    The last four are trained from the first eight's state too, and must be the same.
    """
    losses = []
    if state is None:
        engine = new_engine(case, world)
        losses = train(engine, case, last=8)
        state = engine.state()
        uninterrupted = train(engine, case, first=8, last=12)
        engine.close()
    resumed = new_engine(case, world)
    resumed.load_state(state)
    losses += train(resumed, case, first=8, last=12)
    if len(losses) == 12:
        assert losses[8:] == uninterrupted
    last = resumed.state()
    resumed.close()
    return as_arrays(state), losses, as_arrays(last)


def as_arrays(state: dict[str, Tensor]) -> dict[str, Any]:
    return {key: value.numpy() for key, value in state.items()}  # these travel whole by pipe


def as_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in state.items()}


def relays(world: World, states: list[dict[str, Any]]) -> list[Any]:
    """Each arm from its start, and from `states`, those of its first steps elsewhere."""
    cases = [arm(*one) for one in ARMS]
    pairs = zip(cases, states, strict=True)
    return [(relay(world, case), relay(world, case, as_tensors(state))) for case, state in pairs]


def test_every_optimizer_resumes_on_as_many_ranks_and_on_others(world: World) -> None:
    alone = [relay(world, arm(*one)) for one in ARMS]
    ranks = run_ranks(2, relays, [midway for midway, _, _ in alone])
    for one, (_, losses, last), first, second in zip(ARMS, alone, *ranks, strict=True):
        name = one[0]
        assert losses[-1] < losses[0] - 0.1, one
        # Muon's bf16 and Lion's sign make much of the order of a sum.
        tolerance = {"muon": 2e-2, "lion": 1e-3}.get(name, 1e-4)
        whole, from_one = (
            [*zip(a[1], b[1], strict=True)] for a, b in zip(first, second, strict=True)
        )
        assert np.mean(whole, axis=1) == pytest.approx(losses, abs=tolerance), one
        assert np.mean(from_one, axis=1) == pytest.approx(losses[8:], abs=tolerance), one
        on_one = relay(world, arm(*one), as_tensors(first[0][0]))
        assert on_one[1] == pytest.approx(losses[8:], abs=tolerance), one
        for state in (first[0][2], first[1][2], on_one[2]):
            assert state.keys() == last.keys()
            for key, value in state.items():
                np.testing.assert_allclose(
                    value, last[key], atol=10 * tolerance, err_msg=f"{one} {key}"
                )
