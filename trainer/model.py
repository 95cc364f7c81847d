"""The language model: a decoder-only, pre-LN Transformer whose layers can be skipped.

It has no biases, and the LayerNorm before a linear layer has no gain, which would be redundant
there (OLMo, Groeneveld et al. 2024, arXiv 2402.00838): few parameter tensors, all of them fit for
weight decay, because DeepSpeed's cost at small sizes is Python for each. Which layers run is
decided outside and handed in. Nothing here draws a random number but dropout, from the device's
generator, and `initialize`, from a generator of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trainer.batches import PADDING
from trainer.config import ModelConfig, Precision

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Block(nn.Module):
    """One layer: causal self-attention and a feed-forward, each added to the residual stream.

    Dropout falls on both outputs. Attention weights have none: it would take
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

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        x = x + F.dropout(self._attention(_norm(x)), self.dropout, self.training)
        hidden = F.gelu(self.expand(_norm(x)))
        return x + F.dropout(self.contract(hidden), self.dropout, self.training)

    def _attention(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D / H) each
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """Next-token negative log-likelihood of sequences of up to `context` tokens.

    Input and output embeddings are one matrix; positions are learned. Weights are fp32; the
    matrix products are computed in `precision` (torch.autocast), but the residual stream, its
    norms and the loss in fp32.
    """

    touch_skipped = False  # give a skipped layer's weights zero gradients, not none

    def __init__(
        self, config: ModelConfig, vocabulary: int, context: int, precision: Precision = "fp32"
    ) -> None:
        super().__init__()
        self.precision = precision
        self.activation_checkpointing = config.activation_checkpointing
        self.dropout = config.dropout
        self.embedding = nn.Parameter(torch.empty(vocabulary, config.d_model))
        self.positions = nn.Parameter(torch.empty(context, config.d_model))
        # As a deviation from one: weight decay then pulls towards no gain, not towards silence.
        self.gain = nn.Parameter(torch.empty(config.d_model))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def initialize(self, seed: int) -> None:
        """Draw every weight from `seed`: std 0.02, projections into the residual stream smaller.

        Those are scaled by 1/sqrt(2 * layers) (GPT-2), so that the stream's variance at the
        start does not grow with depth.
        """
        generator = torch.Generator().manual_seed(seed)
        residual = 0.02 / math.sqrt(2 * len(self.blocks))
        nn.init.zeros_(self.gain)
        matrices = (item for item in self.named_parameters() if item[1].dim() == 2)
        for name, weight in matrices:
            std = residual if name.endswith(("attention_out.weight", "contract.weight")) else 0.02
            nn.init.normal_(weight, std=std, generator=generator)

    def forward(
        self, inputs: Tensor, targets: Tensor, keep: Sequence[bool] | None = None
    ) -> Tensor:
        """Mean NLL of `targets` given `inputs`, both (B, T) token ids: a scalar, fp32, nats.

        `keep` says of each layer whether it runs; all do if it is None.
        """
        logits = self._logits(inputs, keep)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    @torch.no_grad()
    def total_nll(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Summed NLL (scalar, fp64, nats) of the targets that are not PADDING; all layers run."""
        logits = self._logits(inputs, None).flatten(0, 1).float()
        each = F.cross_entropy(logits, targets.flatten(), reduction="none", ignore_index=PADDING)
        return each.double().sum()

    def _logits(self, inputs: Tensor, keep: Sequence[bool] | None) -> Tensor:  # (B, T, V)
        assert keep is None or len(keep) == len(self.blocks)
        # Inside, not around DeepSpeed's engine: that switches a surrounding autocast off.
        half = _HALF.get(self.precision)
        with torch.autocast(inputs.device.type, half, enabled=half is not None):
            x = F.embedding(inputs, self.embedding) + self.positions[: inputs.shape[1]]
            x = F.dropout(x, self.dropout, self.training)
            for index, block in enumerate(self.blocks):
                if keep is None or keep[index]:
                    x = self._run(block, x)
                elif self.touch_skipped:
                    x = x + block(x[:0]).sum()  # it sees no sequences: adds 0, costs nothing
            return F.linear(_norm(x) * (1.0 + self.gain), self.embedding)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.activation_checkpointing and self.training:
            return checkpoint(block, x, use_reentrant=False)  # type: ignore[no-any-return]
        return block(x)  # type: ignore[no-any-return]


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])
