"""How what goes wrong in a rank becomes a typed reason. The rest of the gang is tested for real."""

from __future__ import annotations

import errno

import pytest
import torch
from safetensors import SafetensorError
from torch.distributed import DistNetworkError

from hpo.gang import Failure, _cause, _kind
from trainer.checkpoint import CheckpointError
from trainer.folder import FolderInUse
from trainer.settings import ConfigError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out_of_memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
        ),
        (CheckpointError("step-00000100: cannot be read"), "worker_lost"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (SafetensorError("I/O error: Read-only file system (os error 30) at path x"), "disk"),
        (SafetensorError("I/O error: Permission denied (os error 13)"), "error"),
        (FolderInUse("another process is training in runs/x"), "busy"),
        (DistNetworkError("the client socket has failed to connect"), "worker_lost"),
        (RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer"), "worker_lost"),
        (ConfigError("model: heads: 3 does not divide d_model 64"), "error"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "error"),
        (ZeroDivisionError(), "error"),
    ],
)
def test_an_exception_has_one_kind(error: Exception, kind: str) -> None:
    assert _kind(error) == kind


def test_the_cause_is_told_from_its_consequences() -> None:
    dead = Failure("worker_lost", "ActorDiedError", dead=True)
    raised = Failure("error", "ValueError")
    lost_peer = Failure("worker_lost", "Connection closed by peer")
    memory = Failure("out_of_memory", "MemoryError")
    assert _cause([lost_peer, raised]) is raised
    assert _cause([raised, dead]) is dead, "a rank whose peer died may raise anything"
    assert _cause([lost_peer, memory]) is memory
    assert _cause([lost_peer, dead]) is dead
