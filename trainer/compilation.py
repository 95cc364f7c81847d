"""torch.compile for each block of a model, never for the whole: which blocks run changes.

A mask inside a compiled graph would make one graph a mask. Compiled in place, a block keeps its
weights' names. Nothing here changes what a block computes.
"""

from __future__ import annotations

import torch
from torch import nn

from trainer.settings import ConfigError


def compile_blocks(blocks: nn.ModuleList, device: torch.device) -> None:
    """Compile each of `blocks`, when it first runs. Raises ConfigError where nothing compiles."""
    # The process' earlier runs would use up the number of graphs torch allows for one function;
    # past it, it goes on without compiling.
    torch.compiler.reset()
    try:
        torch.compile(_probe)(torch.zeros(2, device=device))
    except RuntimeError as error:
        last = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"model.compile: torch.compile does not work on this machine: {last}; "
            "install a C++ compiler (g++), or set model.compile: false"
        ) from error
    for block in blocks:
        block.compile()


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1.0
