"""Which reason of the ledger an exception in a rank stands for. Imports torch only when asked."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from hpo.control.messages import Kind

T = TypeVar("T")

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV}


@dataclass(frozen=True)
class Failure:
    """What a rank answers instead of raising: a typed end and its traceback."""

    kind: Kind
    detail: str
    dead: bool = False  # the process is gone: what the others say is a consequence


def typed(work: Callable[[], T]) -> T | Failure:
    """Return what `work` returns, or a Failure whose kind follows from what it raised."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - each becomes a typed reason in the ledger
        return Failure(kind_of(error), traceback.format_exc())


def kind_of(error: BaseException) -> Kind:
    """Return the kind of end that an exception means."""
    import torch
    from torch.distributed import DistError

    from trainer.runs.checkpoint import CheckpointError
    from trainer.runs.folder import FolderInUse
    from trainer.runs.store import StoreError

    text = str(error).lower()
    if isinstance(error, StoreError) or _is_of_the_disk(error):
        return "disk"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text or "can't allocate memory" in text)
    ):
        return "out_of_memory"
    lost_peer = isinstance(error, RuntimeError) and any(
        phrase in text for phrase in ("connection closed by peer", "connection reset", "gloo")
    )
    if isinstance(error, FolderInUse):
        return "busy"
    if isinstance(error, (CheckpointError, DistError, ConnectionError)) or lost_peer:
        return "worker_lost"
    return "error"


def _is_of_the_disk(error: BaseException) -> bool:
    """Whether a file could not be written or read because its disk is full, read-only or gone."""
    rust = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
    number = int(rust[1]) if rust else getattr(error, "errno", None)
    if number in _DISK:
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and _is_of_the_disk(cause)


def first_cause(failures: list[Failure]) -> Failure:
    """Return the first cause among the ranks' failures: a rank that lost its peer is a victim."""

    def rank(failure: Failure) -> int:
        order: list[Kind] = ["out_of_memory", "disk", "error", "busy", "worker_lost"]
        return 1 if failure.dead else 2 * order.index(failure.kind)

    return min(failures, key=rank)
