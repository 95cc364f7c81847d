"""The state of a model and its optimizer as whole fp32 tensors by name.

It is the same for any number of ranks, any ZeRO stage and plain DDP: DeepSpeed's own checkpoints
load only at the number of ranks that wrote them. Nothing here knows a file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from trainer.engine.distributed import World, load_deepspeed
from trainer.runs.checkpoint import CheckpointError


def full_state(model: nn.Module, optimizer: Optimizer, world: World) -> dict[str, Tensor]:
    """Weights, moments and the optimizer's step count, on rank 0's CPU; nothing on other ranks.

    Keys are `weights/NAME`; `MOMENT/NAME`, as `exp_avg/NAME`, for what the optimizer keeps of a
    parameter; and `optimizer_steps` if it counts steps. All ranks must call this together, after
    the optimizer's first step.
    """
    state = {}

    def keep(key: str, value: Tensor) -> None:
        if world.rank == 0:
            state[key] = value.to("cpu", copy=True)

    for count in _step_counts(optimizer)[:1]:  # they are all the same
        keep("optimizer_steps", count)
    for name, parameter in model.named_parameters():
        keep(f"weights/{name}", _weight(parameter))
        for moment in _moments(parameter, optimizer):
            keep(f"{moment}/{name}", _moment(parameter, moment, optimizer))
    return state


@torch.no_grad()
def load_full_state(
    model: nn.Module, optimizer: Optimizer, state: Mapping[str, Tensor], world: World
) -> None:
    """Set what `full_state` gives to rank 0's `state`; the optimizer must have taken a step.

    Raises CheckpointError, on every rank, for the state of another model.
    """
    shapes = {f"weights/{name}": _shape(value) for name, value in model.named_parameters()}
    world.on_rank_0(lambda: _check_fits(state, shapes))
    deepspeed = load_deepspeed()
    for name, parameter in model.named_parameters():
        weight = _from_rank_0(state, f"weights/{name}", parameter, world)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(weight)
        if _sharded(parameter):
            deepspeed.utils.safe_set_local_fp32_param(parameter, _shard(parameter, weight, world))
        elif _partitioned(parameter):
            deepspeed.utils.safe_set_full_fp32_param(parameter, weight)
        for moment in _moments(parameter, optimizer):
            value = _from_rank_0(state, f"{moment}/{name}", parameter, world)
            if _sharded(parameter):
                shard = _shard(parameter, value, world)
                deepspeed.utils.safe_set_local_optimizer_state(parameter, shard, moment)
            elif _partitioned(parameter):
                deepspeed.utils.safe_set_full_optimizer_state(parameter, value, moment)
            else:
                optimizer.state[parameter][moment].copy_(value)
    counts = _step_counts(optimizer)
    steps = [_from_rank_0(state, "optimizer_steps", count, world) for count in counts[:1]]
    for count in counts:
        count.copy_(steps[0])


def reset_step_counts(optimizer: Optimizer) -> None:
    """Set the step counts of `optimizer` to 0; its moments stay."""
    for count in _step_counts(optimizer):
        count.zero_()


def _weight(parameter: Tensor) -> Tensor:
    if not _partitioned(parameter):
        return parameter.detach()
    return load_deepspeed().utils.safe_get_full_fp32_param(parameter)  # type: ignore[no-any-return]


def _moment(parameter: Tensor, moment: str, optimizer: Optimizer) -> Tensor:
    if not _partitioned(parameter):
        return optimizer.state[parameter][moment]  # type: ignore[no-any-return]
    utils = load_deepspeed().utils
    return utils.safe_get_full_optimizer_state(parameter, moment)  # type: ignore[no-any-return]


def _partitioned(parameter: Tensor) -> bool:
    # How DeepSpeed's own accessors tell ZeRO stages 1 and 2 from stage 0.
    return hasattr(parameter, "_hp_mapping") or _sharded(parameter)


def _sharded(parameter: Tensor) -> bool:
    # The same for stage 3, where a parameter is empty except while it is in use.
    return hasattr(parameter, "ds_id")


def _shape(parameter: Tensor) -> torch.Size:
    return parameter.ds_shape if _sharded(parameter) else parameter.shape  # type: ignore[attr-defined]


def _shard(parameter: Tensor, value: Tensor, world: World) -> Tensor:
    # This rank's part. DeepSpeed's setter of whole values forgets that the last part is padded.
    numbers = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    padded = F.pad(value.flatten(), (0, numbers * world.ranks - value.numel()))
    return padded[world.rank * numbers : (world.rank + 1) * numbers]


def _moments(parameter: Tensor, optimizer: Optimizer) -> list[str]:
    # Under ZeRO the state belongs to flat pieces of many parameters, all of one kind.
    of = parameter if parameter in optimizer.state else next(iter(optimizer.state))
    return [name for name in optimizer.state[of] if name != "step"]


def _step_counts(optimizer: Optimizer) -> list[Tensor]:
    return [state["step"] for state in optimizer.state.values() if "step" in state]


def _from_rank_0(state: Mapping[str, Tensor], key: str, like: Tensor, world: World) -> Tensor:
    value = torch.empty(_shape(like), dtype=like.dtype, device=world.device)
    if world.rank == 0:
        value.copy_(state[key])
    world.broadcast(value)
    return value


def _check_fits(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    for key, shape in shapes.items():
        found = state[key].shape if key in state else None
        if found != shape:
            raise CheckpointError(
                f"the checkpoint is of another model: its {key} has shape "
                f"{found and tuple(found)}, not {tuple(shape)}"
            )
