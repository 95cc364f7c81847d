"""PowerSGD between the ranks of a DistributedDataParallel model: matrices sent as low-rank factors.

Vogels et al. 2019, arXiv 1905.13727; PyTorch's own hook, with error feedback: what a step did not
send, the next one adds. Here are only its settings and its place in a run's state.
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
    """The communication hook of `ddp`, and what it owes: (ranks, parameters) numbers.

    Gradients are sent whole in the warm-up, where they are least alike from step to step.
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
            start_powerSGD_iter=max(2, config.optim.warmup_steps),  # it takes none below 2
            # A layer dropped in a whole step has a zero matrix: its factors would be 0/0 without
            # an epsilon, and with warm start stay zero for ever.
            warm_start=False,
            orthogonalization_epsilon=1e-8,
        )
        ddp.register_comm_hook(self._hook, powerSGD_hook)

    def begin(self, step: int) -> None:
        """Tell the hook, which counts for itself, the step: factors are drawn from (seed, step)."""
        self._hook.iter = step
        self._hook.rng = np.random.RandomState([self._seed, step])

    def state(self) -> dict[str, Tensor]:
        """What each rank owes, on rank 0's CPU; nothing on other ranks. All ask together."""
        owed = self._hook.error_dict.get(0)
        if owed is None:
            owed = torch.zeros(self._numbers, device=self._world.device)
        errors = self._world.stacked(owed)
        return {_ERRORS: errors.cpu()} if self._world.rank == 0 else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take rank 0's `state`: of as many ranks, exactly; of others, each their mean.

        The mean is what reaches the gradient, which is a mean over ranks too.
        """
        ranks = self._world.ranks
        errors = torch.empty((ranks, self._numbers), device=self._world.device)
        if self._world.rank == 0:
            saved = state[_ERRORS]
            errors.copy_(saved if len(saved) == ranks else saved.mean(0))
        self._world.broadcast(errors)
        self._hook.error_dict[0] = errors[self._world.rank].clone()
