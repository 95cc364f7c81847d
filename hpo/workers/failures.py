"""Which reason of the ledger an exception in a rank stands for. Imports torch only when asked."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hpo.control.messages import Kind

T = TypeVar("T")

# Of a disk, whatever the file.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV}
# Of the code that asked, even for a file in the run's folder. All others are then of the disk.
_CODE = {
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EBADF),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE),
}


@dataclass(frozen=True)
class Failure:
    """What a rank answers instead of raising: a typed end and its traceback."""

    kind: Kind
    detail: str
    dead: bool = False  # the process is gone: what the others say is a consequence


def typed(work: Callable[[], T], folder: Path | None = None) -> T | Failure:
    """Return what `work` returns, or a Failure whose kind follows from what it raised.

    `folder` is that of the run, if it is on this machine.
    """
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - each becomes a typed reason in the ledger
        return Failure(kind_of(error, folder), traceback.format_exc())


def kind_of(error: BaseException, folder: Path | None = None) -> Kind:
    """Return the kind of end that an exception means for the run in `folder`."""
    import torch
    from torch.distributed import DistError

    from trainer.runs.checkpoint import CheckpointError
    from trainer.runs.claim import FolderInUse
    from trainer.runs.folder import FolderAway
    from trainer.runs.store import StoreError

    text = str(error).lower()
    if isinstance(error, (StoreError, FolderAway)) or _is_of_the_disk(error, folder):
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


def _is_of_the_disk(error: BaseException, folder: Path | None) -> bool:
    """Whether a file could not be written or read because its disk is full, read-only or gone."""
    rust = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
    number = int(rust[1]) if rust else getattr(error, "errno", None)
    if number in _DISK or _cannot_be_saved(error):
        return True
    if folder is not None and isinstance(error, OSError) and _is_in(error.filename, folder):
        return number not in _CODE or not folder.exists()
    cause = error.__cause__ or error.__context__
    return cause is not None and _is_of_the_disk(cause, folder)


def _cannot_be_saved(error: BaseException) -> bool:
    # torch.save says that it could not write, and not why.
    return isinstance(error, RuntimeError) and "iostream error" in str(error)


def _is_in(file: object, folder: Path) -> bool:
    if not isinstance(file, (str, bytes, os.PathLike)):
        return False  # of a descriptor, or none
    return Path(os.path.abspath(os.fsdecode(file))).is_relative_to(os.path.abspath(folder))


def first_cause(failures: list[Failure]) -> Failure:
    """Return the first cause among the ranks' failures: a rank that lost its peer is a victim."""

    def rank(failure: Failure) -> int:
        order: list[Kind] = ["out_of_memory", "disk", "error", "busy", "worker_lost"]
        return 1 if failure.dead else 2 * order.index(failure.kind)

    return min(failures, key=rank)
