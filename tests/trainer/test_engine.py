"""The engine against plain PyTorch: same model, masks and batches, written out by hand."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from tests.trainer.engines import (
    STEPS,
    batch,
    config,
    new_engine,
    new_model,
    plain_training,
    train,
)
from tests.trainer.processes import run_ranks
from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig
from trainer.data.batches import Batch
from trainer.engine.deepspeed import DeepSpeedEngine
from trainer.engine.distributed import World
from trainer.engine.loss_scale import LossScale
from trainer.engine.schedule import learning_rate
from trainer.model.transformer import LanguageModel
from trainer.runs.checkpoint import CheckpointError

pytestmark = pytest.mark.slow

# DeepSpeed leaves weights as small as these whole at stage 3, unless it is told not to.
SHARDED = {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
ARMS: dict[str, dict[str, Any]] = {
    "ddp": {"engine": "ddp"},
    "0": {"deepspeed": {"zero_stage": 0}},
    "1": {"deepspeed": {"zero_stage": 1}},
    "2": {"deepspeed": {"zero_stage": 2}},
    "2-offloaded": {"deepspeed": {"zero_stage": 2, "zero_optimization": OFFLOADED}},
    "3": {"deepspeed": {"zero_stage": 3, "zero_optimization": SHARDED}},
    "3-offloaded": {
        "deepspeed": {
            "zero_stage": 3,
            "zero_optimization": {**SHARDED, **OFFLOADED, "offload_param": {"device": "cpu"}},
        }
    },
}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("policy", ["none", "static"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_losses_and_the_state_are_those_of_plain_pytorch(
    world: World, arm: str, policy: str, accumulation: int
) -> None:
    case = config(
        **ARMS[arm],
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


@pytest.mark.parametrize("arm", ARMS)
def test_a_state_goes_on_in_another_engine_bit_for_bit(world: World, arm: str) -> None:
    case = config(
        **ARMS[arm],
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


@pytest.mark.parametrize(("before", "after"), [("2", "0"), ("2", "ddp"), ("ddp", "2")])
def test_a_state_of_one_arm_goes_on_in_another(world: World, before: str, after: str) -> None:
    case = config(**ARMS[before])
    engine = new_engine(case, world)
    train(engine, case, last=10)
    state = engine.state()
    uninterrupted = train(engine, case, first=10)
    engine.close()

    other = new_engine(config(**ARMS[after]), world)
    other.load_state(state)
    assert train(other, case, first=10) == pytest.approx(uninterrupted, abs=1e-5)
    other.close()


def test_a_state_of_one_rank_is_whole_at_stage_3_in_sizes_that_ranks_cannot_share() -> None:
    odd = {"d_model": 15, "heads": 1, "d_ff": 31}
    one = run_ranks(1, states, config(model=odd))[0]
    two = run_ranks(2, states, config(model=odd, **ARMS["3"]))[0]
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=2e-5, err_msg=name)


def states(world: World, case: TrainConfig) -> dict[str, Any]:
    """The state after training, on by way of a state half way."""
    engine = new_engine(case, world)
    train(engine, case, last=4)
    state = engine.state()
    engine.close()
    other = new_engine(case, world)
    other.load_state(state)
    train(other, case, first=4, last=6)
    # Not as tensors: those are shared with a process that ends here.
    return {name: value.numpy() for name, value in other.state().items()}


@pytest.mark.parametrize("arm", ["ddp", "0", "2", "3"])
def test_fp16_skips_a_step_that_overflows_and_scales_the_next_ones_less(
    world: World, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.engine.loss_scale._FIRST_SCALE", 2**23)
    case = config(precision="fp16", **ARMS[arm])
    engine = new_engine(case, world)
    before = engine.state()
    first = train(engine, case, last=1)
    assert not engine.applied
    assert engine.can_go_on
    skipped = engine.state()
    assert skipped.pop("loss_scale").tolist() == [2**22, 0, 1]
    assert all(torch.equal(value, before[name]) for name, value in skipped.items())
    losses = first + train(engine, case, first=1)
    assert engine.applied
    assert losses[-1] < losses[0] - 0.5
    state = engine.state()
    assert 2 < engine.counts()["overflow_steps"] == STEPS - state["optimizer_steps"] < 10
    engine.close()


@pytest.mark.parametrize("last", [1, 12])
def test_fp16_goes_on_bit_for_bit_before_and_after_its_first_applied_step(
    world: World, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.engine.loss_scale._FIRST_SCALE", 2**30)
    monkeypatch.setattr("trainer.engine.loss_scale._GROWTH_STEPS", 3)
    case = config(precision="fp16", model={"dropout": 0.2}, optim={"accumulation": 2})
    engine = new_engine(case, world)
    train(engine, case, last=last)
    state = engine.state()
    uninterrupted = train(engine, case, first=last)
    whole = engine.state()
    engine.close()

    resumed = new_engine(case, world)
    resumed.load_state(state)
    assert train(resumed, case, first=last) == uninterrupted
    assert all(torch.equal(value, whole[name]) for name, value in resumed.state().items())
    assert resumed.counts() == engine.counts()
    resumed.close()


def test_a_loss_scale_leaves_no_trace_in_gradients_that_do_not_overflow() -> None:
    case = config()
    tokens = torch.from_numpy(batch(0).tokens)

    def gradients(scale: LossScale | None, model: LanguageModel) -> list[torch.Tensor]:
        loss, _ = model(tokens[:, :-1], tokens[:, 1:])
        (scale.scaled(loss) if scale else loss).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    plain, scaled = new_model(case), new_model(case)
    for one, other in zip(
        gradients(None, plain), gradients(LossScale(scaled.parameters()), scaled), strict=True
    ):
        assert torch.equal(one, other)


def test_a_loss_scale_grows_after_many_steps_and_is_exhausted_at_one() -> None:
    scale = LossScale([])
    for _ in range(2000):
        scale.update(applied=True)
    assert scale.state().tolist() == [2**18, 0, 0]
    for _ in range(18):
        scale.update(applied=False)
        assert not scale.exhausted
    scale.update(applied=False)
    assert scale.exhausted
    scale.update(applied=True)
    assert not scale.exhausted
    assert scale.state().tolist() == [1, 1, 19]


def test_gradients_of_micro_steps_are_added_up_in_fp32(world: World) -> None:
    micro_steps = 8
    case = config(precision="bf16", optim={"accumulation": micro_steps, "grad_clip": 0.0})
    engine = new_engine(case, world)
    engine.step(0, batch(0), [(True,) * 3] * micro_steps, lr=0.0)
    beta = case.optim.betas[0]
    found = engine.state()["exp_avg/embedding"].double() / (1 - beta)
    engine.close()

    exact, rounded = torch.zeros(found.shape).double(), torch.zeros(found.shape).bfloat16()
    for rows in np.split(batch(0).tokens, micro_steps):
        model, tokens = new_model(case), torch.from_numpy(rows)
        (model(tokens[:, :-1], tokens[:, 1:])[0] / micro_steps).backward()
        gradient = model.embedding.grad
        assert gradient is not None
        exact += gradient.double()
        rounded += gradient.bfloat16()
    assert (found - exact).norm() < 1e-3 * (rounded.double() - exact).norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_checkpointed_blocks_train_as_others_do_bit_for_bit(world: World, precision: str) -> None:
    def losses(activation_checkpointing: bool) -> list[float]:
        model = {"dropout": 0.3, "activation_checkpointing": activation_checkpointing}
        policy = {"policy": "static", "p_init": 0.5}
        case = config(precision=precision, model=model, layerdrop=policy)
        engine = new_engine(case, world)
        found = train(engine, case, last=6)
        engine.close()
        return found

    assert losses(True) == losses(False)


def test_compiled_blocks_compute_about_the_same_and_keep_their_names(world: World) -> None:
    def trained(compiled: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
        policy = {"policy": "pld", "gamma": 0.3}  # another scale for each layer and step
        case = config(model={"compile": compiled}, layerdrop=policy)
        engine = new_engine(case, world)
        losses = train(engine, case)
        state = engine.state()
        engine.close()
        return losses, state

    graphs = counters["stats"]["unique_graphs"]
    losses, state = trained(compiled=True)
    assert 1 <= counters["stats"]["unique_graphs"] - graphs <= 3
    expected, plain = trained(compiled=False)
    assert losses == pytest.approx(expected, abs=1e-4)
    assert state.keys() == plain.keys()


def test_compiling_without_a_compiler_is_refused_in_one_line(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    case = config(model={"compile": True})
    with pytest.raises(ConfigError, match="^model.compile: .* no-such-compiler.*false$"):
        new_engine(case, world)


def test_compiled_blocks_and_stage_3_refuse_each_other() -> None:
    with pytest.raises(ConfigError, match="model.compile: does not go with deepspeed.zero_stage 3"):
        config(model={"compile": True}, deepspeed={"zero_stage": 3})


@pytest.mark.parametrize("arm", ARMS)
def test_a_closed_engine_lets_its_model_go(world: World, arm: str) -> None:
    case = config(**ARMS[arm], precision="fp16")
    model = new_model(case)
    engine, alive = new_engine(case, world, model), weakref.ref(model)
    train(engine, case, last=3)
    engine.close()
    del engine, model
    gc.collect()
    assert alive() is None


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


@pytest.mark.parametrize("arm", ["ddp", "2"])
def test_a_step_with_gradients_that_are_not_finite_is_not_applied(world: World, arm: str) -> None:
    case = config(**ARMS[arm])
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
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, r"\{device: cpu\}, not"),
        ({"zero_stage": 0, "zero_optimization": OFFLOADED}, "zero_stage 1 or more, not 0"),
        (
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            "offload_param: needs deepspeed.zero_stage 3 or more, not 2",
        ),
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


def test_a_piecewise_learning_rate_follows_its_points_and_warms_up() -> None:
    points = [[0.0, 1.0], [0.09, 1.0], [0.1, 0.5], [0.6, 1.5]]
    optim = config(optim={"schedule": "piecewise", "points": points, "warmup_steps": 2}).optim
    rates = [learning_rate(optim, 100, step) for step in (0, 1, 9, 10, 35, 60, 99)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5, 1.0, 1.5, 1.5])
    with pytest.raises(ConfigError, match=r"optim: points: schedule: piecewise needs"):
        config(optim={"schedule": "piecewise"})
    with pytest.raises(ConfigError, match=r"optim.points: .* each fraction larger than the one"):
        config(optim={"schedule": "piecewise", "points": [[0.5, 1.0], [0.5, 2.0]]})
