"""The output layer with its loss terms, computed for one chunk of tokens at a time.

The logits of a batch are by far its largest tensor: 1.6 GB for 8,192 tokens and 50,000 words. Here
only one chunk of them exists at a time, and its gradient is computed at once, in the forward pass
(as Liger does; Hsu et al. 2024, arXiv 2410.10989). That takes less memory, and less time, because a
chunk stays in the CPU's cache. Softmaxes, logarithms and sums are in fp32, or in fp64 if the input
is. Nothing here knows a model, a step or a teacher's file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Logits held at once: as many as fit the cache of a CPU core, or keep a GPU busy.
_CHUNK_NUMBERS = {"cpu": 2**21, "cuda": 2**27}


@dataclass(frozen=True)
class Mixture:
    """alpha * CE + beta * T^2 KL(teacher || student)."""

    alpha: float = 1.0
    beta: float = 0.0
    temperature: float = 1.0


class Signal(ABC):
    """What a teacher predicts for the next token, for every token of a batch."""

    @abstractmethod
    def divergence(
        self, logits: Tensor, normalizer: Tensor, rows: slice, mixture: Mixture
    ) -> tuple[Tensor, Tensor]:
        """T^2 KL(teacher || student), summed over `rows`, and a gradient by the student's logits.

        The `normalizer` is logsumexp of the `logits` (rows, V). The gradient is alpha times that of
        the normalizer's sum, plus beta times that of the divergence. It may overwrite the logits.
        """


@dataclass(frozen=True)
class Live(Signal):
    """A teacher's hidden states (N, D), and its output embedding (V, D), both of one type."""

    hidden: Tensor
    embedding: Tensor

    def divergence(
        self, logits: Tensor, normalizer: Tensor, rows: slice, mixture: Mixture
    ) -> tuple[Tensor, Tensor]:
        """Compare softmax(logits / T) of both models (Hinton et al. 2015, arXiv 1503.02531)."""
        alpha, beta, temperature = mixture.alpha, mixture.beta, mixture.temperature
        theirs = F.linear(self.hidden[rows], self.embedding).to(logits.dtype)
        if temperature == 1.0:
            total, teacher = _divergence(logits, normalizer, theirs)
            gradient = logits.sub_(normalizer).exp_().mul_(alpha + beta)
            return total, gradient.sub_(teacher, alpha=beta)
        tempered = logits / temperature
        tempered_normalizer = tempered.logsumexp(dim=-1, keepdim=True)
        total, teacher = _divergence(tempered, tempered_normalizer, theirs.div_(temperature))
        taught = tempered.sub_(tempered_normalizer).exp_().sub_(teacher)
        gradient = logits.sub_(normalizer).exp_().mul_(alpha)
        return total * temperature**2, gradient.add_(taught, alpha=beta * temperature)


def _divergence(ours: Tensor, normalizer: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    # Returns the divergence, summed, and the probabilities of `theirs`, written over `theirs`.
    their_normalizer = theirs.logsumexp(dim=-1, keepdim=True)
    ratio = theirs - ours
    teacher = theirs.sub_(their_normalizer).exp_()
    expected = ratio.mul_(teacher).sum(dim=-1, keepdim=True)
    return (expected + normalizer - their_normalizer).sum(), teacher


@dataclass(frozen=True)
class TopK(Signal):
    """A teacher's `k` best tokens, and the tail, which is all other tokens together.

    `tokens` (N, k) are ids. `log_probabilities` (N, k + 1) are at temperature 1, the tail's last,
    -inf if there is no tail. Student and teacher are compared as distributions over these k + 1
    outcomes, and the temperature is applied to them. With k = V that is the live teacher's term.
    """

    tokens: Tensor
    log_probabilities: Tensor

    def divergence(
        self, logits: Tensor, normalizer: Tensor, rows: slice, mixture: Mixture
    ) -> tuple[Tensor, Tensor]:
        """Compare the k + 1 outcomes; a tail's token gets its share of the tail's gradient."""
        alpha, beta, temperature = mixture.alpha, mixture.beta, mixture.temperature
        tokens, theirs = self.tokens[rows], self.log_probabilities[rows].to(logits.dtype)
        best = logits.gather(1, tokens).sub_(normalizer)
        others = logits.sub_(normalizer).exp_().scatter_(1, tokens, 0.0)
        tail = others.sum(dim=1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).tiny)
        log_tail = torch.where(theirs[:, -1:].isneginf(), -torch.inf, tail.log())
        ours = torch.log_softmax(torch.cat([best, log_tail], dim=1) / temperature, dim=-1)
        theirs = torch.log_softmax(theirs / temperature, dim=-1)
        teacher = theirs.exp()
        total = torch.where(teacher > 0, teacher * (theirs - ours), 0.0).sum() * temperature**2
        taught = (ours.exp() - teacher) * (beta * temperature)
        gradient = others.mul_(alpha + taught[:, -1:] / tail)
        return total, gradient.scatter_(1, tokens, best.exp_().mul_(alpha) + taught[:, :-1])


@dataclass(frozen=True)
class Lesson:
    """What one micro step learns from a teacher, and how much that counts.

    It has either `signal`, what the teacher predicts, or `states`: for each layer of the student,
    the teacher's residual stream after the matching layer, (B, T, D_teacher).
    """

    mixture: Mixture
    signal: Signal | None = None
    states: Sequence[Tensor] | None = None


def feature_distance(
    states: Sequence[Tensor | None], teacher: Sequence[Tensor], projection: Tensor | None
) -> Tensor:
    """Mean squared distance of the student's kept layers' states from the teacher's: a scalar.

    Each state is normalised over its width first, so that the term does not depend on the
    stream's scale, which grows with depth. `projection` (D_teacher, D) maps the student's states to
    the teacher's width, in all layers alike (as in TinyBERT, Jiao et al. 2020, arXiv 1909.10351).
    """
    distances = []
    for ours, theirs in zip(states, teacher, strict=True):
        if ours is not None:
            ours = ours.to(_exact(ours.dtype))
            ours = ours if projection is None else F.linear(ours, projection)
            distances.append(F.mse_loss(normalized(ours), normalized(theirs.to(ours.dtype))))
    return torch.stack(distances).mean()


def normalized(x: Tensor) -> Tensor:
    """`x` with mean 0 and variance 1 over its last dimension."""
    return F.layer_norm(x, x.shape[-1:])


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype | None = None,
    mixture: Mixture = Mixture(),
    signal: Signal | None = None,
) -> tuple[Tensor, Tensor]:
    """The mixture of cross-entropy and a teacher's term for the logits `hidden @ weight.T`.

    `hidden` (N, D) and `weight` (V, D) get gradients; `targets` (N,) are token ids. Products are
    computed in `dtype`, by default that of `hidden`. Both terms are sums over the vocabulary and
    means over tokens. Returns the loss, a scalar, and the two terms before alpha and beta, (2,),
    without a gradient: nats per token.
    """
    return _Head.apply(hidden, weight, targets, dtype, mixture, signal)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def total_nll(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Summed NLL (scalar, fp64, nats) of the `targets` (N,) that are not negative."""
    product, total = dtype or hidden.dtype, hidden.new_zeros((), dtype=torch.float64)
    weight = weight.to(product)
    for rows in _chunks(hidden, weight):
        logits = F.linear(hidden[rows].to(product), weight).to(_exact(hidden.dtype))
        nll = F.cross_entropy(logits, targets[rows].clamp(min=0), reduction="none")
        total += (nll.double() * (targets[rows] >= 0)).sum()
    return total


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        dtype: torch.dtype | None,
        mixture: Mixture,
        signal: Signal | None,
    ) -> tuple[Tensor, Tensor]:
        exact = _exact(hidden.dtype)
        product = weight.to(dtype or hidden.dtype)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=exact)
        terms = hidden.new_zeros(2, dtype=torch.float64)
        for rows in _chunks(hidden, weight):
            x = hidden[rows].to(product.dtype)
            logits = F.linear(x, product).to(exact)
            sums, gradient = _terms(logits, targets[rows], rows, mixture, signal)
            terms += sums
            gradient = gradient.to(product.dtype)
            hidden_gradient[rows] = gradient @ product
            _add_product(weight_gradient, gradient.T, x)
        ctx.gradients = hidden_gradient, weight_gradient
        ctx.tokens = len(hidden)
        terms = (terms / len(hidden)).to(exact)
        ctx.mark_non_differentiable(terms)
        return mixture.alpha * terms[0] + mixture.beta * terms[1], terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scale = upstream[0] / ctx.tokens
        hidden_gradient, weight_gradient = ctx.gradients
        ctx.gradients = None
        return hidden_gradient.mul_(scale), weight_gradient.mul_(scale), None, None, None, None


def _terms(
    logits: Tensor, targets: Tensor, rows: slice, mixture: Mixture, signal: Signal | None
) -> tuple[Tensor, Tensor]:
    # Returns both terms, summed over `rows`, and the mixture's gradient, written over the logits.
    normalizer = logits.logsumexp(dim=-1, keepdim=True)
    cross_entropy = (normalizer - logits.gather(1, targets[:, None])).sum()
    if signal is None:
        divergence = torch.zeros_like(cross_entropy)
        gradient = logits.sub_(normalizer).exp_()
        if mixture.alpha != 1.0:
            gradient.mul_(mixture.alpha)
    else:
        divergence, gradient = signal.divergence(logits, normalizer, rows, mixture)
    gradient.scatter_add_(1, targets[:, None], torch.full_like(normalizer, -mixture.alpha))
    return torch.stack([cross_entropy, divergence]), gradient


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    numbers = _CHUNK_NUMBERS.get(hidden.device.type, _CHUNK_NUMBERS["cpu"])
    rows = max(16, numbers // len(weight))
    return [slice(first, first + rows) for first in range(0, len(hidden), rows)]


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
