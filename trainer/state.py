"""The state of a model and its AdamW as whole fp32 tensors by name.

It is the same for any number of ranks and any ZeRO stage: DeepSpeed's own checkpoints load only
at the number of ranks that wrote them. Nothing here knows a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from trainer.checkpoint import CheckpointError
from trainer.distributed import World, deepspeed

_MOMENTS = ("exp_avg", "exp_avg_sq")


def full_state(model: nn.Module, optimizer: AdamW, world: World) -> dict[str, Tensor]:
    """Weights, moments and the optimizer's step count, on rank 0's CPU; nothing on other ranks.

    Keys are `weights/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME` and `optimizer_steps`. All ranks
    must ask together; before the optimizer's first step there is nothing to ask for.
    """
    state = {}

    def keep(key: str, value: Tensor) -> None:
        if world.rank == 0:
            state[key] = value.to("cpu", copy=True)

    keep("optimizer_steps", next(_step_counts(optimizer)))
    for name, parameter in model.named_parameters():
        keep(f"weights/{name}", _weight(parameter))
        for moment in _MOMENTS:
            keep(f"{moment}/{name}", _moment(parameter, moment, optimizer))
    return state


@torch.no_grad()
def load_full_state(
    model: nn.Module, optimizer: AdamW, state: Mapping[str, Tensor], world: World
) -> None:
    """Set what `full_state` gives to rank 0's `state`; the optimizer must have taken a step.

    Raises CheckpointError, on every rank, for the state of another model.
    """
    shapes = {f"weights/{name}": value.shape for name, value in model.named_parameters()}
    world.on_rank_0(lambda: _check_fits(state, shapes))
    for name, parameter in model.named_parameters():
        weight = _from_rank_0(state, f"weights/{name}", parameter, world)
        parameter.copy_(weight)
        if _partitioned(parameter):
            deepspeed.utils.safe_set_full_fp32_param(parameter, weight)
        for moment in _MOMENTS:
            value = _from_rank_0(state, f"{moment}/{name}", parameter, world)
            if _partitioned(parameter):
                deepspeed.utils.safe_set_full_optimizer_state(parameter, value, moment)
            else:
                optimizer.state[parameter][moment].copy_(value)
    counts = list(_step_counts(optimizer))
    steps = _from_rank_0(state, "optimizer_steps", counts[0], world)
    for count in counts:
        count.copy_(steps)


def _weight(parameter: Tensor) -> Tensor:
    if not _partitioned(parameter):
        return parameter.detach()
    return deepspeed.utils.safe_get_full_fp32_param(parameter)  # type: ignore[no-any-return]


def _moment(parameter: Tensor, moment: str, optimizer: AdamW) -> Tensor:
    if not _partitioned(parameter):
        return optimizer.state[parameter][moment]  # type: ignore[no-any-return]
    return deepspeed.utils.safe_get_full_optimizer_state(parameter, moment)  # type: ignore[no-any-return]


def _partitioned(parameter: Tensor) -> bool:
    # How DeepSpeed's own accessors tell ZeRO stages 1 and 2 from stage 0.
    return hasattr(parameter, "_hp_mapping")


def _step_counts(optimizer: AdamW) -> Iterator[Tensor]:
    return (state["step"] for state in optimizer.state.values())


def _from_rank_0(state: Mapping[str, Tensor], key: str, like: Tensor, world: World) -> Tensor:
    value = torch.empty_like(like, device=world.device)
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
