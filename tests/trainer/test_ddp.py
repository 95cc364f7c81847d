"""DDP's two ranks: plain, and sending each other low-rank gradients. One rank: test_engine.py."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.trainer.engines import config, new_engine, plain_training
from tests.trainer.engines import train as train_engine
from tests.trainer.processes import run_ranks, same, train
from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig
from trainer.engine.ddp import DDPEngine
from trainer.engine.distributed import World

pytestmark = pytest.mark.slow

Tiny = Callable[..., dict[str, Any]]
MIDWAY = 12  # the warm-up is 5 steps, so errors are fed back by then


def case(powersgd_rank: int | None, accumulation: int = 2) -> TrainConfig:
    return config(
        engine="ddp",
        ddp={"powersgd_rank": powersgd_rank},
        layerdrop={"policy": "static", "p_init": 0.5},
        optim={"accumulation": accumulation},
    )


@dataclass
class Trained:
    """What one rank saw: all losses, those after a resume, weights and what is said of the hook."""

    losses: list[float]
    resumed: list[float]
    weights: dict[str, Any]
    same_weights: bool
    sent: float = 1.0  # numbers sent after the warm-up, of those not compressed
    owed_by_three: float = 0.0  # after loading the state of three ranks, which owe 0, 1 and 2
    left_behind: int = 0  # DDP objects, once the engine is closed


def training(world: World, config: TrainConfig) -> Trained:
    """Train `config`, and its second part once more from a state in the middle."""
    engine = new_engine(config, world)
    assert isinstance(engine, DDPEngine)
    losses = train_engine(engine, config, last=MIDWAY)
    midway = engine.state()
    losses += train_engine(engine, config, first=MIDWAY)
    weights = {name: weight.detach().numpy() for name, weight in engine.model.named_parameters()}

    resumed = new_engine(config, world)
    assert isinstance(resumed, DDPEngine)
    resumed.load_state(midway)
    again = train_engine(resumed, config, first=MIDWAY)
    same_weights = all(
        np.array_equal(weight.detach(), weights[name])
        for name, weight in resumed.model.named_parameters()
    )
    found = Trained(losses, again, weights, same_weights)
    if engine._powersgd is not None and resumed._powersgd is not None:
        _, before, after = engine._powersgd._hook.compression_stats()
        found.sent = after / before
        owed = torch.arange(3.0)[:, None].expand(3, engine._powersgd._numbers)
        resumed.load_state({**midway, "powersgd_errors": owed})
        found.owed_by_three = resumed._powersgd._hook.error_dict[0].unique().item()
    engine.close()
    resumed.close()
    del engine, resumed
    gc.collect()
    found.left_behind = sum(type(it) is DistributedDataParallel for it in gc.get_objects())
    return found


def trainings(world: World, configs: list[TrainConfig]) -> list[Trained]:
    return [training(world, config) for config in configs]


PLAIN, AT_ONCE, LOW_RANK = case(None), case(None, accumulation=1), case(1)


@pytest.fixture(scope="module")
def ranks() -> list[tuple[Trained, Trained]]:
    """Both ranks' trainings of PLAIN, AT_ONCE and LOW_RANK."""
    first, second = run_ranks(2, trainings, [PLAIN, AT_ONCE, LOW_RANK])
    return list(zip(first, second, strict=True))


def mean_losses(trained: tuple[Trained, Trained]) -> Any:
    return np.mean([rank.losses for rank in trained], axis=0)


def test_two_ranks_train_what_one_does_layer_dropping_too(
    ranks: list[tuple[Trained, Trained]],
) -> None:
    for setup, trained in zip((PLAIN, AT_ONCE), ranks[:2], strict=True):
        expected, _, model = plain_training(setup)
        assert mean_losses(trained) == pytest.approx(expected, abs=1e-5)
        for name, weight in model.named_parameters():
            for rank in trained:
                np.testing.assert_allclose(
                    rank.weights[name], weight.detach(), atol=2e-5, rtol=1e-3
                )


def test_low_rank_gradients_train_nearly_as_well_as_whole_ones(
    ranks: list[tuple[Trained, Trained]],
) -> None:
    whole, low_rank = mean_losses(ranks[0]), mean_losses(ranks[2])
    assert low_rank[:5] == pytest.approx(whole[:5], abs=1e-5), "sent whole in the warm-up"
    assert low_rank[7:] != pytest.approx(whole[7:], abs=1e-3), "and not after it"
    assert whole[0] - whole[-1] > 0.5
    assert low_rank[-1] == pytest.approx(whole[-1], abs=0.3)
    assert ranks[2][0].sent < 0.2
    first, second = (rank.weights for rank in ranks[2])
    for name, weight in first.items():
        np.testing.assert_array_equal(weight, second[name])


def test_a_state_goes_on_bit_for_bit_on_every_rank(ranks: list[tuple[Trained, Trained]]) -> None:
    for rank in (rank for trained in ranks for rank in trained):
        assert rank.resumed == rank.losses[MIDWAY:]
        assert rank.same_weights
        assert rank.left_behind == 0


def test_what_other_ranks_owed_the_gradient_is_shared_equally(
    ranks: list[tuple[Trained, Trained]],
) -> None:
    assert [rank.owed_by_three for rank in ranks[2]] == [1.0, 1.0]


def test_a_stopped_run_with_low_rank_gradients_goes_on_bit_for_bit(
    tiny: Tiny, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"engine": "ddp", "ddp": {"powersgd_rank": 1}, "eval_every": 12}
    train(tiny(tmp_path / "whole", **settings), ranks=2)
    document = tiny(tmp_path / "run", **settings)
    train(document, ranks=2, ask_to_stop_at=6)
    alone = train(document)[0]
    assert isinstance(alone, ConfigError)
    assert "compresses what ranks send each other" in str(alone)
    assert train(document, ranks=2)[0][-1].kind == "finished"
    assert same(tmp_path / "run", tmp_path / "whole")
