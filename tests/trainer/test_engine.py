"""The engine against plain PyTorch: same model, masks and batches, written out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from trainer.batches import Batch
from trainer.checkpoint import CheckpointError
from trainer.config import TrainConfig, resolve
from trainer.distributed import World
from trainer.engine import DeepSpeedEngine, Engine
from trainer.layerdrop import Mask, make_policy
from trainer.model import LanguageModel
from trainer.run import ENGINES
from trainer.schedule import learning_rate
from trainer.settings import ConfigError

VOCABULARY, STEPS = 60, 20
ARMS = [*({"deepspeed": {"zero_stage": stage}} for stage in (0, 1, 2)), {"engine": "ddp"}]


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
    model = LanguageModel(config.model, VOCABULARY, config.data.context)
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


@pytest.mark.parametrize("arm", ARMS, ids=str)
@pytest.mark.parametrize("policy", ["none", "static"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_losses_and_the_state_are_those_of_plain_pytorch(
    world: World, arm: dict[str, Any], policy: str, accumulation: int
) -> None:
    case = config(
        **arm,
        layerdrop={"policy": policy, "p_init": 0.5},
        optim={"accumulation": accumulation},
    )
    engine = new_engine(case, world)
    losses = train(engine, case)
    state = engine.state()
    engine.close()

    expected, adamw, model = plain_training(case)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] < losses[0] - 0.5
    assert state["optimizer_steps"] == STEPS
    for name, parameter in model.named_parameters():
        plain = {"weights": parameter.detach(), **adamw.state[parameter]}
        for what, tolerance in (("weights", 2e-5), ("exp_avg", 1e-6), ("exp_avg_sq", 1e-6)):
            torch.testing.assert_close(
                state[f"{what}/{name}"], plain[what], atol=tolerance, rtol=1e-3
            )


@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_a_state_goes_on_in_another_engine_bit_for_bit(world: World, arm: dict[str, Any]) -> None:
    case = config(
        **arm,
        model={"dropout": 0.2},
        layerdrop={"policy": "static", "p_init": 0.3},
        optim={"accumulation": 2},
    )
    engine = new_engine(case, world)
    train(engine, case, last=10)
    state = engine.state()
    uninterrupted = train(engine, case, first=10)
    engine.close()

    resumed = new_engine(case, world)
    resumed.load_state(state)
    assert train(resumed, case, first=10) == uninterrupted
    resumed.close()


@pytest.mark.parametrize(
    ("before", "after"), [(ARMS[2], ARMS[0]), (ARMS[2], ARMS[3]), (ARMS[3], ARMS[2])], ids=str
)
def test_a_state_of_one_arm_goes_on_in_another(
    world: World, before: dict[str, Any], after: dict[str, Any]
) -> None:
    case = config(**before)
    engine = new_engine(case, world)
    train(engine, case, last=10)
    state = engine.state()
    uninterrupted = train(engine, case, first=10)
    engine.close()

    other = new_engine(config(**after), world)
    other.load_state(state)
    assert train(other, case, first=10) == pytest.approx(uninterrupted, abs=1e-5)
    other.close()


def test_the_state_of_another_model_is_refused(world: World) -> None:
    case, wider = config(), config(model={"d_ff": 48})
    engine = new_engine(case, world)
    train(engine, case, last=1)
    state = engine.state()
    engine.close()
    other = new_engine(wider, world)
    with pytest.raises(CheckpointError, match=r"another model.*expand.*\(32, 16\), not \(48, 16\)"):
        other.load_state(state)
    other.close()


def test_dropout_depends_on_where_the_rows_are_and_on_nothing_else(world: World) -> None:
    half = Batch(batch(0).tokens[:4], batch(0).starts[:4])
    twice = Batch(np.tile(half.tokens, (2, 1)), np.tile(half.starts, 2))

    def losses(rows: Batch, accumulation: int, steps: tuple[int, ...], seed: int) -> list[float]:
        case = config(model={"dropout": 0.5}, optim={"accumulation": accumulation})
        engine = new_engine(case, world)
        torch.manual_seed(seed)
        masks = [(True,) * 3] * accumulation
        found = [engine.step(step, rows, masks, lr=0.0)[0].item() for step in steps]
        engine.close()
        return found

    first, other = losses(twice, 1, (0, 1), seed=1)
    assert losses(twice, 1, (1, 0), seed=2) == [other, first]
    assert first != other
    # Were equal halves in two micro steps to draw the same, their mean would be that of one.
    assert losses(twice, 2, (0,), seed=1) != pytest.approx(losses(half, 1, (0,), seed=1), abs=1e-5)


@pytest.mark.parametrize("arm", ARMS[2:], ids=str)
def test_a_step_with_gradients_that_are_not_finite_is_not_applied(
    world: World, arm: dict[str, Any]
) -> None:
    case = config(**arm)
    model = new_model(case)
    engine = new_engine(case, world, model)
    train(engine, case, last=1)
    assert engine.applied
    before = model.embedding.detach().clone()
    model.positions.register_hook(lambda gradient: gradient * math.inf)
    train(engine, case, first=1, last=2)
    assert not engine.applied
    assert torch.equal(model.embedding.detach(), before)
    engine.close()


def test_what_the_deepspeed_section_says_reaches_deepspeed(world: World) -> None:
    case = config(deepspeed={"zero_optimization": {"reduce_bucket_size": 1234}})
    engine = new_engine(case, world)
    assert isinstance(engine, DeepSpeedEngine)
    assert engine._deepspeed.zero_reduce_bucket_size() == 1234
    assert engine._deepspeed.zero_optimization_stage() == 2
    engine.close()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"zero_optimization": {"reduce_bucket_size": "many"}}, "deepspeed: .*reduce_bucket_size"),
        ({"zero_optimization": {"no_such_key": 1}}, "deepspeed: .*no_such_key"),
    ],
)
def test_what_deepspeed_refuses_is_one_line(
    world: World, section: dict[str, Any], message: str
) -> None:
    case = config(deepspeed=section)
    with pytest.raises(ConfigError, match=message) as refusal:
        new_engine(case, world)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"train_batch_size": 4}, "train_batch_size: is set by data.batch_size"),
        ({"bf16": {"enabled": True}}, "bf16: is set by precision"),
        ({"zero_optimization": {"stage": 3}}, "is set by deepspeed.zero_stage"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offloading"),
        ({"zero_optimization": 2}, "must hold settings, not 2"),
    ],
)
def test_deepspeed_keys_that_would_contradict_the_config_are_refused(
    section: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(deepspeed=section)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"engine": "ddp", "deepspeed": {"zero_optimization": {}}},
            "deepspeed.zero_optimization: goes with engine: deepspeed, not engine: ddp",
        ),
        ({"ddp": {"powersgd_rank": 2}}, "ddp.powersgd_rank: goes with engine: ddp, not engine: d"),
        ({"engine": "ddp", "ddp": {"powersgd_rank": 0}}, "ddp.powersgd_rank: .* 0"),
        ({"optim": {"name": "muon"}}, "optim.name: muon needs whole matrices.*zero_stage 2 gives"),
        ({"optim": {"name": "lamb"}, "deepspeed": {"zero_stage": 1}}, "optim.name: lamb needs"),
        ({"optim": {"name": "adam"}}, "optim.name: .*adam"),
    ],
)
def test_what_does_not_go_with_an_engine_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        config(**settings)
    assert "\n" not in str(refusal.value)


def test_powersgd_is_refused_on_one_rank() -> None:
    case = config(engine="ddp", ddp={"powersgd_rank": 2})
    case.check_ranks(2)
    with pytest.raises(ConfigError, match=r"powersgd_rank: 2 compresses.*and there is one"):
        case.check_ranks(1)


def test_the_learning_rate_warms_up_from_nothing_and_ends_where_it_should() -> None:
    optim = config(optim={"lr": 1.0, "warmup_steps": 4, "lr_final_fraction": 0.1}).optim
    assert [learning_rate(optim, 100, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(optim, 100, 52) == pytest.approx(0.55)
    assert learning_rate(optim, 100, 99) == pytest.approx(0.1, abs=1e-3)
    assert learning_rate(optim.model_copy(update={"schedule": "constant"}), 100, 99) == 1.0
    assert learning_rate(optim.model_copy(update={"warmup_steps": 200}), 100, 99) == 0.5
