"""torch.compile for each block of a model, never for the whole: which blocks run changes.

A mask inside a compiled graph would make one graph a mask. Compiled in place, a block keeps its
weights' names. Nothing here changes what a block computes.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import torch
from torch import nn

from trainer.config.settings import ConfigError


def compile_blocks(blocks: nn.ModuleList, device: torch.device) -> None:
    """Have each of `blocks` compiled when it first runs. Raises ConfigError where nothing can."""
    missing = _missing_compiler(device)
    if missing is not None:
        raise ConfigError(
            f"model.compile: true needs {missing}, which this machine lacks; "
            "install it, or use model.compile: false"
        )
    # Graphs of the process' earlier runs count towards the few that torch allows for a function;
    # past them it would go on without compiling.
    torch.compiler.reset()
    for block in blocks:
        block.compile()


def _missing_compiler(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None if find_spec("triton") else "triton"
    compiler = os.environ.get("CXX", "g++")  # as torch chooses it
    return None if shutil.which(compiler) else f"the C++ compiler {compiler}"
