"""The optimizers that `optim.name` names, each a torch.optim.Optimizer over a model's parameters.

AdamW and Muon are torch's. Lamb and Lion are written here, because DeepSpeed's versions have to be
compiled on the machine, and its Lamb needs a GPU. Nothing here knows an engine; the train config
checks which optimizers are right under ZeRO.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from trainer.config.sections import OptimConfig
from trainer.model.transformer import LanguageModel

Betas = tuple[float, float]
Group = dict[str, Any]  # a param_group of torch's: settings and parameters
State = dict[str, Tensor]  # what an optimizer keeps of one parameter, by name


def make_optimizer(optim: OptimConfig, model: LanguageModel) -> Optimizer:
    """The optimizer of `model`'s parameters; its learning rate is set before every step."""
    common = optim.model_dump(include={"lr", "betas", "weight_decay"})
    if optim.name == "muon":
        return MuonAndAdamW(model, optim.momentum, **common)
    if optim.name == "adamw":
        return AdamW(model.parameters(), fused=True, **common)
    return {"lamb": Lamb, "lion": Lion}[optim.name](model.parameters(), **common)


class _ByParameter(Optimizer, ABC):
    """An optimizer that moves each parameter by that parameter's own gradient and state alone."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, betas: Betas, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(group, parameter, parameter.grad, self.state[parameter])

    @abstractmethod
    def _move(self, group: Group, parameter: Tensor, gradient: Tensor, state: State) -> None:
        """Move `parameter` one step; `state`, empty at first, belongs to it alone."""


class Lion(_ByParameter):
    """Evolved sign momentum (Chen et al. 2023, arXiv 2302.06675), with decoupled weight decay.

    Every number moves by `lr`, so `lr` should be 3 to 10 times smaller than AdamW's. It works
    elementwise, so it does the same on flat pieces of parameters.
    """

    def _move(self, group: Group, parameter: Tensor, gradient: Tensor, state: State) -> None:
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        for_update, for_memory = group["betas"]
        direction = torch.lerp(gradient, state["exp_avg"], for_update).sign_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"])
        state["exp_avg"].lerp_(gradient, 1 - for_memory)


class Lamb(_ByParameter):
    """Adam's step, scaled by each matrix' own norm (You et al. 2020, arXiv 1904.00962).

    As in the authors' code, the norm is not bounded, and vectors are not scaled, because a vector
    that starts at zero would hardly move.
    """

    _EPSILON = 1e-6

    def _move(self, group: Group, parameter: Tensor, gradient: Tensor, state: State) -> None:
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        (beta1, beta2), steps = group["betas"], state["step"].add_(1)
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1) / (1 - beta1**steps)
        square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2) / (1 - beta2**steps)
        update = mean / (square.sqrt() + self._EPSILON) + group["weight_decay"] * parameter
        parameter.sub_(group["lr"] * self._trust(parameter, update) * update)

    def _trust(self, parameter: Tensor, update: Tensor) -> Tensor:
        ratio = parameter.norm() / update.norm()
        usable = (parameter.dim() > 1) & (ratio > 0) & ratio.isfinite()
        return torch.where(usable, ratio, torch.ones_like(ratio))


class MuonAndAdamW(Optimizer):
    """Muon for the layers' matrices, AdamW for embeddings, positions and gain (Jordan et al. 2024).

    Muon's step is scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that both
    share one learning rate and weight decay. It orthogonalizes in bfloat16 at any precision.
    """

    def __init__(
        self, model: LanguageModel, momentum: float, lr: float, betas: Betas, weight_decay: float
    ) -> None:
        matrices = list(model.blocks.parameters())
        others = [model.embedding, model.positions, model.gain]
        muon = Muon(matrices, lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw")
        adamw = AdamW(others, lr, betas, weight_decay=weight_decay, fused=True)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        # Both parts use this optimizer's groups and state, so they see what is set here.
        muon.param_groups, adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        muon.state = adamw.state = self.state
        self._parts = (muon, adamw)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()  # type: ignore[no-untyped-call]
