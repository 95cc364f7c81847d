"""Every loss term, its value and its gradient, against the formula written out in fp64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import trainer.model.losses
from trainer.model.losses import Live, Mixture, Signal, TopK, feature_distance, head_loss, total_nll

TOKENS, WIDTH, VOCABULARY = 37, 6, 23
Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen tokens at a time: two chunks and a rest."""
    monkeypatch.setitem(trainer.model.losses._CHUNK_NUMBERS, "cpu", 1)


def numbers(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


HIDDEN, WEIGHT = numbers(TOKENS, WIDTH, seed=1), numbers(VOCABULARY, WIDTH, seed=2)
TARGETS = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(3))
TEACHER = Live(numbers(TOKENS, 4, seed=4), numbers(VOCABULARY, 4, seed=5))
THEIR_LOGITS = TEACHER.hidden @ TEACHER.embedding.T


def cross_entropy(hidden: Tensor, weight: Tensor) -> Tensor:
    logits = hidden @ weight.T
    probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    return -probabilities[torch.arange(TOKENS), TARGETS].log().mean()


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 sum p log(p / q), mean over tokens, of two tables of unnormalised probabilities."""
    p, q = teacher ** (1 / temperature), student ** (1 / temperature)
    p, q = p / p.sum(dim=1, keepdim=True), q / q.sum(dim=1, keepdim=True)
    return temperature**2 * (p * (p / q).log()).sum(dim=1).mean()


def softmax(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum(dim=1, keepdim=True)


def best(k: int) -> TopK:
    """What a cache says of the teacher at temperature 1."""
    probabilities = softmax(THEIR_LOGITS)
    top, tokens = probabilities.topk(k, dim=1)
    tail = (1.0 - top.sum(dim=1, keepdim=True)).clamp(min=0.0)
    if k == VOCABULARY:
        tail = torch.zeros_like(tail)
    return TopK(tokens, torch.cat([top, tail], dim=1).log())


def gathered(probabilities: Tensor, tokens: Tensor) -> Tensor:
    """A table of the probabilities of `tokens`, and of all others together."""
    top = probabilities.gather(1, tokens)
    others = torch.ones_like(probabilities).scatter(1, tokens, 0.0)
    return torch.cat([top, (probabilities * others).sum(dim=1, keepdim=True)], dim=1)


def of_reference(loss: Loss) -> tuple[float, Tensor, Tensor]:
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    value = loss(hidden, weight)
    value.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert weight.grad is not None
    return value.item(), hidden.grad, weight.grad


def of_ours(
    dtype: torch.dtype, scale: float = 1.0, signal: Signal | None = None, **mixture: float
) -> tuple[float, Tensor, Tensor]:
    hidden = HIDDEN.to(dtype, copy=True).requires_grad_()
    weight = WEIGHT.to(dtype, copy=True).requires_grad_()
    loss, _ = head_loss(hidden, weight, TARGETS, None, Mixture(**mixture), signal)
    (loss * scale).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss.item(), hidden.grad / scale, weight.grad / scale


def assert_equal(
    ours: tuple[float, Tensor, Tensor], reference: tuple[float, Tensor, Tensor]
) -> None:
    assert ours[0] == pytest.approx(reference[0], rel=1e-6)
    for mine, expected in zip(ours[1:], reference[1:], strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_cross_entropy_and_its_gradients_are_the_formulas(dtype: torch.dtype) -> None:
    assert_equal(of_ours(dtype, scale=8.0), of_reference(cross_entropy))


def test_the_cross_entropy_has_its_weight_without_a_teachers_word_too() -> None:
    half = of_reference(lambda hidden, weight: 0.5 * cross_entropy(hidden, weight))
    assert_equal(of_ours(torch.float64, alpha=0.5), half)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_live_teachers_term_is_the_formula(dtype: torch.dtype, temperature: float) -> None:
    def mixed(hidden: Tensor, weight: Tensor) -> Tensor:
        taught = divergence((hidden @ weight.T).exp(), THEIR_LOGITS.exp(), temperature)
        return 0.7 * cross_entropy(hidden, weight) + 0.3 * taught

    teacher = Live(TEACHER.hidden.to(dtype), TEACHER.embedding.to(dtype))
    mixture = {"alpha": 0.7, "beta": 0.3, "temperature": temperature}
    assert_equal(of_ours(dtype, 0.5, teacher, **mixture), of_reference(mixed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 4, VOCABULARY - 1])
def test_a_cached_teachers_term_is_that_of_the_best_tokens_and_one_for_the_rest(
    dtype: torch.dtype, temperature: float, k: int
) -> None:
    signal = best(k)

    def mixed(hidden: Tensor, weight: Tensor) -> Tensor:
        ours = gathered(softmax(hidden @ weight.T), signal.tokens)
        taught = divergence(ours, signal.log_probabilities.exp(), temperature)
        return 0.4 * cross_entropy(hidden, weight) + 0.6 * taught

    mixture = {"alpha": 0.4, "beta": 0.6, "temperature": temperature}
    assert_equal(of_ours(dtype, 1.0, signal, **mixture), of_reference(mixed))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_cache_of_the_whole_vocabulary_is_the_live_teacher(temperature: float) -> None:
    def loss(signal: Signal) -> tuple[float, Tensor, Tensor]:
        return of_ours(torch.float32, 1.0, signal, alpha=0.0, beta=1.0, temperature=temperature)

    whole = best(VOCABULARY)
    assert torch.isinf(whole.log_probabilities[:, -1]).all()
    live = Live(TEACHER.hidden.float(), TEACHER.embedding.float())
    value, *gradients = loss(live)
    assert_equal(loss(whole), (value, gradients[0].double(), gradients[1].double()))


def test_a_tail_that_the_student_thinks_impossible_does_not_break_the_gradient() -> None:
    signal = best(2)
    hidden = HIDDEN.float().mul(60.0).requires_grad_()
    loss, _ = head_loss(hidden, WEIGHT.float(), TARGETS, None, Mixture(beta=1.0), signal)
    loss.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(hidden.grad).all()


def test_the_terms_are_reported_apart_and_unweighted() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    loss, terms = head_loss(hidden, WEIGHT, TARGETS, None, Mixture(0.25, 2.0, 2.0), TEACHER)
    taught = divergence((HIDDEN @ WEIGHT.T).exp(), THEIR_LOGITS.exp(), 2.0)
    expected = torch.stack([cross_entropy(HIDDEN, WEIGHT), taught])
    torch.testing.assert_close(terms, expected)
    assert loss.item() == pytest.approx((0.25 * terms[0] + 2.0 * terms[1]).item())
    assert not terms.requires_grad


def test_the_total_skips_padding() -> None:
    targets = torch.cat([TARGETS[:-5], torch.full((5,), -100)])
    each = -softmax(HIDDEN @ WEIGHT.T)[torch.arange(TOKENS), TARGETS].log()
    total = total_nll(HIDDEN, WEIGHT, targets)
    assert total.item() == pytest.approx(each[:-5].sum().item(), rel=1e-9)


@pytest.mark.parametrize("projected", [False, True])
def test_the_feature_term_is_the_mean_squared_distance_of_normalised_states(
    projected: bool,
) -> None:
    width = 6 if projected else 4
    ours = [numbers(2, 3, width, seed=1, scale=5.0), None, numbers(2, 3, width, seed=2)]
    theirs = [numbers(2, 3, 4, seed=seed) for seed in (3, 4, 5)]
    projection = numbers(4, 6, seed=6) if projected else None

    def normal(values: Any) -> Any:
        rows = np.asarray(values, np.float64)
        centred = rows - rows.mean(axis=-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)

    distances = []
    for mine, teacher in zip(ours, theirs, strict=True):
        if mine is not None:
            mine = mine if projection is None else np.einsum("btd,ed->bte", mine, projection)
            distances.append(((normal(mine) - normal(teacher)) ** 2).mean())
    found = feature_distance(ours, theirs, projection)
    assert found.item() == pytest.approx(np.mean(distances), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(2, 40), st.integers(0, 2**16))
def test_chunks_make_no_difference(tokens: int, vocabulary: int, seed: int) -> None:
    hidden, weight = numbers(tokens, 3, seed=seed), numbers(vocabulary, 3, seed=seed + 1)
    targets = torch.arange(tokens) % vocabulary
    whole = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
    loss, _ = head_loss(hidden.requires_grad_(), weight, targets)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-9)


class Largest(TorchDispatchMode):
    """Remembers the most numbers that a tensor made meanwhile had."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def test_logits_are_never_held_whole_with_a_large_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(trainer.model.losses._CHUNK_NUMBERS, "cpu", 2**21)
    tokens, vocabulary = 512, 50_000
    hidden = torch.randn(tokens, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)
    teacher = Live(torch.randn(tokens, 4), torch.randn(vocabulary, 4))
    with Largest() as largest:
        loss, _ = head_loss(
            hidden, weight, torch.zeros(tokens, dtype=torch.int64), None, Mixture(beta=0.5), teacher
        )
        loss.backward()  # type: ignore[no-untyped-call]
    assert 2**20 < largest.numbers <= 2**21 < tokens * vocabulary / 10
