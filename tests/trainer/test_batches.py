"""Batches: what a train step reads, and that an evaluation predicts every token once."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.settings import ConfigError
from trainer.data.batches import PADDING, EvalBlocks, TrainBatches

contexts = st.integers(1, 12)
batch_sizes = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def train_batches(draw: st.DrawFn) -> TrainBatches:
    """Batches over tokens that are their own positions."""
    context, batch_size = draw(contexts), draw(batch_sizes)
    shortest = context * (batch_size + 1)
    length = draw(st.integers(shortest, shortest + 200))
    return TrainBatches(np.arange(length, dtype=np.uint16), context, batch_size, draw(seeds))


@given(train_batches(), st.integers(0, 3))
def test_train_blocks_are_contiguous_and_those_of_an_epoch_do_not_overlap(
    batches: TrainBatches, epoch: int
) -> None:
    steps = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
    rows = np.concatenate([batches.at(step).tokens for step in steps])
    assert (np.diff(rows, axis=1) == 1).all()
    inputs = rows[:, :-1].ravel()
    assert len(set(inputs.tolist())) == inputs.size


@given(contexts, batch_sizes, seeds, st.integers(0, 150), st.lists(st.integers(0, 300), min_size=1))
def test_a_train_batch_is_a_function_of_seed_and_step_alone(
    context: int, batch_size: int, seed: int, surplus: int, visited: list[int]
) -> None:
    tokens = np.arange(context * (batch_size + 1) + surplus, dtype=np.int32)
    wandering = TrainBatches(tokens, context, batch_size, seed)
    for step in visited:
        batch = wandering.at(step).tokens
        assert batch.shape == (batch_size, context + 1)
        assert batch.dtype == np.int64
        fresh = TrainBatches(tokens, context, batch_size, seed)
        np.testing.assert_array_equal(batch, fresh.at(step).tokens)


@given(contexts, batch_sizes, st.integers(0, 150))
def test_an_epoch_leaves_out_less_than_a_batch_a_shift_and_a_block(
    context: int, batch_size: int, surplus: int
) -> None:
    length = context * (batch_size + 1) + surplus
    batches = TrainBatches(np.zeros(length, np.uint16), context, batch_size, 0)
    read = batches.batches_per_epoch * batch_size * context
    assert 0 <= length - read - 1 < (batch_size + 2) * context


def test_epochs_and_seeds_differ_in_order_and_in_where_blocks_begin() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        batches = TrainBatches(np.arange(5000, dtype=np.uint16), 16, 4, seed)
        first = number * batches.batches_per_epoch
        steps = range(first, first + batches.batches_per_epoch)
        return [int(start) for step in steps for start in batches.at(step).tokens[:, 0]]

    epochs = [epoch(seed, number) for seed in range(3) for number in range(5)]
    assert len({tuple(starts) for starts in epochs}) == len(epochs)
    assert len({starts[0] % 16 for starts in epochs}) > 3
    assert all(starts != sorted(starts) for starts in epochs)


def test_the_order_of_training_never_changes_between_versions_and_platforms() -> None:
    batches = TrainBatches(np.arange(100, dtype=np.uint16), 8, 2, seed=7)
    starts = [batches.at(step).tokens[:, 0].tolist() for step in (0, 1, 5, 6)]
    assert starts == [[60, 28], [4, 44], [85, 21], [69, 5]]


def test_a_train_batch_costs_microseconds() -> None:
    batches = TrainBatches(np.zeros(1_000_000, np.uint16), 64, 16, 0)
    costs = []
    for step in range(200):
        begin = time.perf_counter()
        batches.at(step)
        costs.append(time.perf_counter() - begin)
    assert np.median(costs) < 100e-6


def test_a_train_split_shorter_than_a_batch_is_refused_by_the_settings_that_would_do() -> None:
    TrainBatches(np.zeros(64 * 17, np.uint16), 64, 16, 0)
    with pytest.raises(ConfigError) as refusal:
        TrainBatches(np.zeros(64 * 17 - 1, np.uint16), 64, 16, 0)
    message = str(refusal.value)
    for part in ("data.batch_size: 16", "data.context 64", "1088 tokens", "has 1087", "smaller"):
        assert part in message
    assert "\n" not in message


@given(st.integers(2, 400), st.integers(1, 40), st.integers(1, 9), st.integers(1, 8), st.data())
def test_an_evaluation_predicts_each_token_once_from_the_one_before_it_on_any_ranks(
    length: int, context: int, ranks: int, windows_per_batch: int, data: st.DataObject
) -> None:
    stride = data.draw(st.none() | st.integers(1, context))
    blocks = EvalBlocks(np.arange(length, dtype=np.uint16), context, stride)
    predicted: list[int] = []
    for rank in range(ranks):
        for inputs, targets in blocks.batches(rank, ranks, windows_per_batch):
            assert inputs.dtype == targets.dtype == np.int64
            assert inputs.shape == targets.shape == (len(inputs), context)
            assert 1 <= len(inputs) <= windows_per_batch
            real = targets != PADDING
            assert real.any(axis=1).all()
            assert (inputs[real] == targets[real] - 1).all()
            predicted += targets[real].tolist()
    assert sorted(predicted) == list(range(1, length))
    assert blocks.targets == length - 1


@given(st.integers(2, 200), st.integers(1, 40), st.data())
def test_an_overlapping_window_predicts_from_context_less_stride_tokens_or_more(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    blocks = EvalBlocks(np.arange(length, dtype=np.uint16), context, stride)
    for inputs, targets in blocks.batches(0, 1, 1):
        seen = targets[targets != PADDING] - inputs[0, 0]
        assert seen.min() > min(context - stride, inputs[0, 0])
        assert (inputs[0][: seen.max()] == np.arange(seen.max()) + inputs[0, 0]).all()


@given(st.integers(2, 400), st.integers(1, 40), st.integers(1, 9))
def test_an_evaluation_is_shared_evenly_and_pads_only_after_the_last_token(
    length: int, context: int, ranks: int
) -> None:
    blocks = EvalBlocks(np.arange(length, dtype=np.uint16), context)
    shares = [list(blocks.batches(rank, ranks, 1)) for rank in range(ranks)]
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    short = [targets[0] for share in shares for _, targets in share if PADDING in targets]
    assert len(short) <= 1
    for row in short:
        assert (row[row != PADDING][-1], row[-1]) == (length - 1, PADDING)
        assert (np.diff((row == PADDING).astype(int)) >= 0).all()
