"""What only ZeRO stage 3 needs: whole weights to evaluate with, and engines to be forgotten.

At stage 3 a weight is empty on every rank except while the layer that uses it runs. Nothing here
trains, and nothing here is called at another stage.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from trainer.engine.distributed import load_deepspeed


def whole_weights(engine: Any) -> AbstractContextManager[Any]:
    """A context in which every rank has all weights of DeepSpeed's `engine`; all enter together.

    They are gathered once. Ranks evaluate unequal numbers of batches, so a layer that gathered
    its own, as in training, would wait for ever on a rank that has finished.
    """
    return load_deepspeed().zero.unwrap_model_for_generation(engine)  # type: ignore[no-any-return]


def forget_engines() -> None:
    """Release the models of engines that were destroyed.

    DeepSpeed 0.19.8 keeps every model of a process alive, in a list and in a method's cache.
    """
    zero = load_deepspeed().runtime.zero
    zero.parameter_offload.FWD_MODULE_STACK.clear()
    for method in vars(zero.parameter_offload.PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()
