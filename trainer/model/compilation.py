"""torch.compile for each block of a model, never for the whole, because other blocks run each time.

A graph of the whole model would be compiled anew for every mask. A block is compiled in place, so
its weights keep their names. It computes the same as before.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import torch
from torch import nn

from trainer.config.settings import ConfigError


def compile_blocks(blocks: nn.ModuleList, device: torch.device) -> None:
    """Have each of `blocks` compiled when it first runs. Raises ConfigError without a compiler."""
    missing = _missing_compiler(device)
    if missing is not None:
        raise ConfigError(
            f"model.compile: true needs {missing}, which this machine lacks; "
            "install it, or use model.compile: false"
        )
    # torch allows few graphs for a function and goes on without compiling when there are more. The
    # graphs of this process' earlier runs would count too.
    torch.compiler.reset()
    for block in blocks:
        block.compile()


def _missing_compiler(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None if find_spec("triton") else "triton"
    compiler = os.environ.get("CXX", "g++")  # as torch chooses it
    return None if shutil.which(compiler) else f"the C++ compiler {compiler}"
