"""PowerSGD between the ranks of a DistributedDataParallel model: matrices sent as low-rank factors.

It is PyTorch's own hook (Vogels et al. 2019, arXiv 1905.13727), with error feedback: the next step
adds what a step did not send. Here are only its settings and its place in a run's state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from trainer.config.train import TrainConfig
from trainer.engine.distributed import World

_ERRORS = "powersgd_errors"


class PowerSGD:
    """The communication hook of `ddp`, with (ranks, parameters) numbers not sent yet.

    Gradients are sent whole in the warm-up, where they differ most from step to step.
    """

    # One bucket for all: without warm start the hook's buckets delete each other's factors.
    BUCKET_MEGABYTES = 2**20

    def __init__(
        self, ddp: DistributedDataParallel, rank: int, config: TrainConfig, world: World
    ) -> None:
        self._seed = config.seed
        self._world = world
        self._numbers = sum(parameter.numel() for parameter in ddp.parameters())
        self._hook = PowerSGDState(
            process_group=None,
            matrix_approximation_rank=rank,
            start_powerSGD_iter=max(2, config.optim.warmup_steps),  # the hook wants 2 or more
            # A layer dropped in a whole step has gradients of zero. Their factors would be 0/0
            # without an epsilon, and with warm start they would stay zero for ever.
            warm_start=False,
            orthogonalization_epsilon=1e-8,
        )
        ddp.register_comm_hook(self._hook, powerSGD_hook)

    def begin(self, step: int) -> None:
        """Set the hook's own count of steps, and have it draw its factors from (seed, step)."""
        self._hook.iter = step
        self._hook.rng = np.random.RandomState([self._seed, step])

    def state(self) -> dict[str, Tensor]:
        """What each rank has not sent, on rank 0's CPU; empty on others. All call together."""
        owed = self._hook.error_dict.get(0)
        if owed is None:
            owed = torch.zeros(self._numbers, device=self._world.device)
        errors = self._world.stacked(owed)
        return {_ERRORS: errors.cpu()} if self._world.rank == 0 else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over rank 0's `state`. If it is of another number of ranks, each takes the mean.

        The gradient is a mean over ranks too, so it is the mean that reaches it.
        """
        ranks = self._world.ranks
        errors = torch.empty((ranks, self._numbers), device=self._world.device)
        if self._world.rank == 0:
            saved = state[_ERRORS]
            errors.copy_(saved if len(saved) == ranks else saved.mean(0))
        self._world.broadcast(errors)
        self._hook.error_dict[0] = errors[self._world.rank].clone()
