"""The engine that trains under PyTorch's DistributedDataParallel, to compare DeepSpeed against.

Weights, gradients and moments are whole on every rank. Nothing here knows ZeRO.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trainer.data.batches import Batch
from trainer.engine.base import Engine
from trainer.engine.powersgd import PowerSGD
from trainer.model.layerdrop import Mask
from trainer.model.losses import Lesson


class DDPEngine(Engine):
    """Training under DistributedDataParallel, or of the bare model on one rank."""

    def step(self, step: int, batch: Batch, masks: Sequence[Mask], lr: float) -> Tensor:
        if self._powersgd is not None:
            self._powersgd.begin(step)
        return super().step(step, batch, masks, lr)

    @property
    def applied(self) -> bool:
        return self._applied

    def state(self) -> dict[str, Tensor]:
        return super().state() | (self._powersgd.state() if self._powersgd else {})

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        if self._powersgd is not None:
            self._powersgd.load_state(state)

    def close(self) -> None:
        del self._ddp, self._powersgd

    def _wrap(self) -> None:
        # DDP waits for every parameter's gradient. It could look for parameters that will have none
        # (`find_unused_parameters`), but would then discard PowerSGD's correction of them.
        self.model.touch_skipped = True
        self._applied = True
        self._ddp: DistributedDataParallel | None = None
        self._powersgd: PowerSGD | None = None
        if self._world.ranks > 1:
            self._distribute()

    def _distribute(self) -> None:
        rank = self._config.ddp.powersgd_rank
        ddp = DistributedDataParallel(
            self.model,
            gradient_as_bucket_view=True,
            bucket_cap_mb=None if rank is None else PowerSGD.BUCKET_MEGABYTES,
        )
        if rank is not None:
            self._powersgd = PowerSGD(ddp, rank, self._config, self._world)
        self._ddp = ddp
        # After its first backward DDP arranges its buckets anew, in the order of the gradients, and
        # among many ranks sums depend on that. Done here, it is the same before and after a resume.
        token = torch.zeros((1, 1), dtype=torch.int64, device=self._world.device)
        torch.autograd.backward(ddp(token, token)[0] * 0.0)
        self._optimizer.zero_grad()

    def _learn(
        self, last: bool, inputs: Tensor, targets: Tensor, mask: Mask, lesson: Lesson | None
    ) -> Tensor:
        with self._ddp.no_sync() if self._ddp and not last else nullcontext():
            loss, terms = (self._ddp or self.model)(inputs, targets, mask, lesson)
            torch.autograd.backward(self._scaled(loss) / self._config.optim.accumulation)
        if last:
            self._update()
        return terms  # type: ignore[no-any-return]

    def _update(self) -> None:
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self._config.optim.grad_clip or math.inf
        )
        self._applied = bool(norm.isfinite())
        if self._applied:
            self._optimizer.step()
        self._optimizer.zero_grad()

    def _prime(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()
        self._optimizer.zero_grad()
