"""The language model: a decoder-only, pre-LN Transformer whose layers can be skipped.

It has no biases, and the LayerNorm before a linear layer has no gain, which would be redundant
there (OLMo, Groeneveld et al. 2024, arXiv 2402.00838). All parameter tensors are fit for weight
decay, and they are few: DeepSpeed runs Python code for each, which is its cost at small sizes. The
caller decides which layers run. Random numbers are drawn only by dropout, from the device's
generator, and by `initialize`, from a generator of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trainer.config.sections import ModelConfig
from trainer.model.losses import Lesson, Mixture, feature_distance, head_loss, normalized, total_nll

# Types of the matrix products, by config.precision.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Block(nn.Module):
    """One layer: causal self-attention and a feed-forward, each added to the residual stream.

    Dropout applies to both outputs. It does not apply to attention weights, where it would take
    scaled_dot_product_attention off its fast path on the CPU.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.attention_out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.expand = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.contract = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor, scale: float | Tensor = 1.0) -> Tensor:  # (B, T, D) -> (B, T, D)
        """Add both residuals, multiplied by `scale`, to `x`; a scale of 1.0 costs nothing."""
        attended = F.dropout(self._attention(normalized(x)), self.dropout, self.training)
        x = _plus(x, attended, scale)
        hidden = F.gelu(self.expand(normalized(x)))
        fed = F.dropout(self.contract(hidden), self.dropout, self.training)
        return _plus(x, fed, scale)

    def _attention(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D / H) each
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """Next-token negative log-likelihood of sequences of up to `context` tokens.

    Input and output embeddings are one matrix; positions are learned. Weights are fp32; the
    matrix products are computed in `dtype` (torch.autocast), the residual stream, its norms and
    the loss in fp32.
    """

    touch_skipped = False  # give a skipped layer's weights zeros as gradients, not None

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: int,
        context: int,
        dtype: torch.dtype = torch.float32,
        teacher_width: int | None = None,
    ) -> None:
        """`teacher_width` is that of a teacher whose states are learned from, if it differs."""
        super().__init__()
        self.dtype = dtype
        self.activation_checkpointing = config.activation_checkpointing
        self.compiled = config.compile
        self.dropout = config.dropout
        self.embedding = nn.Parameter(torch.empty(vocabulary, config.d_model))
        self.positions = nn.Parameter(torch.empty(context, config.d_model))
        # What the gain is more than 1: weight decay then pulls the gain to 1, not to 0.
        self.gain = nn.Parameter(torch.empty(config.d_model))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.projection: nn.Parameter | None = None
        if teacher_width is not None:
            self.projection = nn.Parameter(torch.empty(teacher_width, config.d_model))

    def own_parameters(self) -> int:
        """How many numbers its weights have, without the projection for a teacher's states."""
        return sum(p.numel() for p in self.parameters() if p is not self.projection)

    def initialize(self, seed: int) -> None:
        """Draw every weight from `seed`: std 0.02, projections into the residual stream smaller.

        These projections are scaled by 1/sqrt(2 * layers) (GPT-2), so that the stream's variance at
        the start does not grow with depth.
        """
        generator = torch.Generator().manual_seed(seed)
        residual = 0.02 / math.sqrt(2 * len(self.blocks))
        nn.init.zeros_(self.gain)
        matrices = (item for item in self.named_parameters() if item[1].dim() == 2)
        for name, weight in matrices:
            std = residual if name.endswith(("attention_out.weight", "contract.weight")) else 0.02
            nn.init.normal_(weight, std=std, generator=generator)

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        keep: Sequence[float] | None = None,
        lesson: Lesson | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss of `targets` given `inputs`, both (B, T) token ids: a scalar, nats per token.

        The loss is the mean NLL, or the mixture that `lesson` asks for. The second result, without
        a gradient, has the NLL and the teacher's term, (2,). `keep` scales each layer's residuals,
        and 0 skips the layer; if `keep` is None, all layers run unscaled.
        """
        lesson = lesson or Lesson(Mixture())
        states: list[Tensor | None] = []
        hidden = self.hidden(inputs, keep, states).flatten(0, 1)
        loss, terms = head_loss(
            hidden, self.embedding, targets.flatten(), self.dtype, lesson.mixture, lesson.signal
        )
        if lesson.states is None:
            return loss, terms
        distance = feature_distance(states, lesson.states, self.projection)
        return loss + lesson.mixture.beta * distance, torch.stack([terms[0], distance.detach()])

    @torch.no_grad()
    def total_nll(
        self, inputs: Tensor, targets: Tensor, keep: Sequence[float] | None = None
    ) -> Tensor:
        """Summed NLL (scalar, fp64, nats) of targets that are not PADDING; `keep` as in forward."""
        hidden = self.hidden(inputs, keep).flatten(0, 1)
        return total_nll(hidden, self.embedding, targets.flatten(), self.dtype)

    def hidden(
        self,
        inputs: Tensor,
        keep: Sequence[float] | None = None,
        states: list[Tensor | None] | None = None,
    ) -> Tensor:
        """The input of the output embedding: (B, T) token ids -> (B, T, D), fp32.

        `states` is filled with the residual stream after each layer, None after a skipped layer.
        """
        assert keep is None or len(keep) == len(self.blocks)
        # Here, not around DeepSpeed's engine, which switches a surrounding autocast off.
        with torch.autocast(inputs.device.type, self.dtype, enabled=self.dtype != torch.float32):
            x = F.embedding(inputs, self.embedding) + self.positions[: inputs.shape[1]]
            x = F.dropout(x, self.dropout, self.training)
            for index, block in enumerate(self.blocks):
                scale = 1.0 if keep is None else float(keep[index])  # True is not a factor
                if scale:
                    x = self._run(block, x, scale)
                elif self.touch_skipped and self.training:
                    x = x + block(x[:0]).sum()  # without sequences: adds 0, costs nothing
                if states is not None:
                    states.append(x if scale else None)
            return normalized(x) * (1.0 + self.gain)

    def _run(self, block: nn.Module, x: Tensor, scale: float | Tensor) -> Tensor:
        if self.compiled and scale != 1.0:
            scale = torch.tensor(scale)  # each new number would be compiled anew
        if self.activation_checkpointing and self.training:
            return checkpoint(block, x, scale, use_reentrant=False)  # type: ignore[no-any-return]
        return block(x, scale)  # type: ignore[no-any-return]


def _plus(x: Tensor, residual: Tensor, scale: float | Tensor) -> Tensor:
    if isinstance(scale, Tensor):
        return x + residual * scale
    return torch.add(x, residual, alpha=scale)
