"""The language model: what it computes, and what it never looks at."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.config.sections import ModelConfig
from trainer.data.batches import PADDING
from trainer.model.transformer import LanguageModel

VOCABULARY, CONTEXT = 50, 12


def model(
    layers: int = 3, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32
) -> LanguageModel:
    config = ModelConfig(layers=layers, d_model=16, heads=2, d_ff=32, dropout=dropout)
    made = LanguageModel(config, VOCABULARY, CONTEXT, dtype)
    made.initialize(seed=3)
    return made


def tokens(rows: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(VOCABULARY, (rows, CONTEXT + 1), generator=generator)
    return batch[:, :-1].clone(), batch[:, 1:].clone()


def test_an_untrained_model_knows_nothing() -> None:
    assert model()(*tokens())[0].item() == pytest.approx(math.log(VOCABULARY), rel=0.02)


def test_a_prediction_does_not_look_ahead() -> None:
    trained, (inputs, targets) = model(), tokens()
    targets = torch.full_like(targets, PADDING)
    targets[:, 4] = 7
    before = trained.total_nll(inputs, targets)
    later = inputs.clone()
    later[:, 5:] = (later[:, 5:] + 1) % VOCABULARY
    assert trained.total_nll(later, targets) == before
    now = inputs.clone()
    now[:, 4] = (now[:, 4] + 1) % VOCABULARY
    assert trained.total_nll(now, targets) != before


def test_a_skipped_layer_might_as_well_not_be_there() -> None:
    deep, shallow = model(layers=3), model(layers=2)
    shallow.load_state_dict(
        {
            name.replace("blocks.2.", "blocks.1."): value
            for name, value in deep.state_dict().items()
            if not name.startswith("blocks.1.")
        }
    )
    skipping, _ = deep(*tokens(), (True, False, True))
    assert torch.equal(skipping, shallow(*tokens())[0])
    assert not torch.equal(skipping, deep(*tokens())[0])
    assert deep.total_nll(*tokens(), (True, False, True)) == shallow.total_nll(*tokens())


def test_a_scaled_layer_adds_that_much_of_both_its_outputs() -> None:
    # Scaling the two projections into the residual stream is the same, written otherwise.
    scaled, reference = model(), model()
    with torch.no_grad():
        for weight in (
            reference.blocks[1].attention_out.weight,
            reference.blocks[1].contract.weight,
        ):
            weight.mul_(1 / 0.3)
    (loss, _), (expected, _) = scaled(*tokens(), (1.0, 1 / 0.3, 1.0)), reference(*tokens())
    torch.testing.assert_close(loss, expected)
    assert not torch.allclose(loss, model()(*tokens())[0])
    loss.backward()
    expected.backward()
    torch.testing.assert_close(
        scaled.blocks[1].qkv.weight.grad, reference.blocks[1].qkv.weight.grad
    )
    torch.testing.assert_close(
        scaled.blocks[1].contract.weight.grad, reference.blocks[1].contract.weight.grad / 0.3
    )


def test_a_scale_of_one_changes_no_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        one, plain = model(dtype=dtype), model(dtype=dtype)
        one(*tokens(), (1.0, 1.0, 1.0))[0].backward()
        plain(*tokens())[0].backward()
        gradients = [[p.grad for p in each.parameters()] for each in (one, plain)]
        assert all(map(torch.equal, *gradients))


def test_a_skipped_layer_gets_no_gradient() -> None:
    trained = model()
    trained(*tokens(), (True, False, True))[0].backward()
    has_gradient = [block.qkv.weight.grad is not None for block in trained.blocks]
    assert has_gradient == [True, False, True]


def test_the_total_is_the_sum_over_tokens_and_padding_is_not_one() -> None:
    trained, (inputs, targets) = model(), tokens()
    total = trained.total_nll(inputs, targets)
    assert total.dtype == torch.float64
    assert total.item() == pytest.approx(
        trained(inputs, targets)[0].item() * targets.numel(), rel=1e-6
    )

    targets[0, 5:] = PADDING
    inputs[0, 6:] = 0
    shorter = trained.total_nll(inputs[:1, :5], targets[:1, :5]) + trained.total_nll(
        inputs[1:], targets[1:]
    )
    assert trained.total_nll(inputs, targets).item() == pytest.approx(shorter.item(), rel=1e-6)


def test_evaluation_has_no_dropout() -> None:
    dropping = model(dropout=0.5)
    dropping.eval()
    assert dropping.total_nll(*tokens()) == model().eval().total_nll(*tokens())
    dropping.train()
    assert dropping(*tokens())[0] != model()(*tokens())[0]


def test_weights_come_from_the_seed_alone_and_take_nothing_from_the_global_state() -> None:
    torch.manual_seed(1)
    first = model()
    torch.manual_seed(2)
    again = LanguageModel(ModelConfig(layers=3, d_model=16, heads=2, d_ff=32), VOCABULARY, CONTEXT)
    state = torch.get_rng_state()
    again.initialize(seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    again.initialize(seed=4)
    assert not torch.equal(first.embedding, again.embedding)


def test_weights_start_small_and_smaller_where_they_feed_the_residual_stream() -> None:
    config = ModelConfig(layers=8, d_model=128, heads=2, d_ff=128)
    made = LanguageModel(config, 1000, 64)
    made.initialize(seed=0)
    block = made.blocks[0]
    for weight in (made.embedding, made.positions, block.qkv.weight, block.expand.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    for weight in (block.attention_out.weight, block.contract.weight):
        assert weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)


def test_input_and_output_embeddings_are_one_matrix() -> None:
    trained = model()
    shapes = [tuple(p.shape) for p in trained.parameters()]
    assert sum(VOCABULARY in shape for shape in shapes) == 1
    inputs, targets = torch.full((1, 1), 3), torch.full((1, 1), 5)
    trained(inputs, targets)[0].backward()
    assert trained.embedding.grad is not None
    rows = trained.embedding.grad.norm(dim=1)
    assert torch.all(rows > 0)  # all rows as outputs ...
    input_gradient = rows[3]
    trained.embedding.grad = None
    trained(torch.full((1, 1), 4), targets)[0].backward()
    assert not torch.isclose(trained.embedding.grad[3].norm(), input_gradient)  # ... one as input


def test_bf16_computes_about_the_same_and_keeps_weights_and_loss_in_fp32() -> None:
    half, full = model(dtype=torch.bfloat16), model()
    loss, _ = half(*tokens())
    loss.backward()
    assert loss.dtype == torch.float32
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert loss.item() != full(*tokens())[0].item()
    assert loss.item() == pytest.approx(full(*tokens())[0].item(), rel=1e-2)


def test_the_attention_of_a_layer_is_that_of_the_textbook() -> None:
    block = model().blocks[0]
    x = torch.randn(2, CONTEXT, 16, generator=torch.Generator().manual_seed(1))
    q, k, v = (
        part.view(2, CONTEXT, 2, 8).transpose(1, 2)
        for part in F.linear(x, block.qkv.weight).split(16, dim=-1)
    )
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(8)
    future = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
    expected = F.linear(mixed.transpose(1, 2).flatten(2), block.attention_out.weight)
    assert torch.allclose(block._attention(x), expected, atol=1e-6)
