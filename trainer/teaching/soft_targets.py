"""A teacher's predictions for the train split: its best tokens for every position, kept on disk.

One cache serves all runs of a machine that learn from one teacher. It is built once, under a lock,
by the process that needs it first, and all map it. The next build continues one that was killed,
unless this machine has started anew since: a power cut can leave wrong content in an unsynced file.
Nothing here knows a loss or a step.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from rich.filesize import decimal
from torch import Tensor
from torch.nn import functional as F

from trainer.config.settings import ConfigError
from trainer.config.whole import put_in_place, since_boot
from trainer.data.tokens import Tokens
from trainer.model.transformer import LanguageModel

FORMAT = 2  # part of every cache key
_BATCH_BLOCKS = 16
_LOCK_SECONDS = 1.0  # between two signs of life while another process builds

Alive = Callable[[], None]


@dataclass(frozen=True)
class SoftTargets:
    """Top-k cache of one teacher over one split, cut in blocks of `context` from its start."""

    path: Path
    tokens: Tokens  # the split, shape (tokens,)
    context: int
    vocabulary: int
    k: int

    @property
    def size_bytes(self) -> int:
        """Size on disk: fp32 for k log-probabilities and the tail's, and k token ids."""
        return self.predictions * self._row.itemsize

    @property
    def predictions(self) -> int:
        """Number of targets in whole blocks."""
        return (len(self.tokens) - 1) // self.context * self.context

    def at(self, starts: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Ids (N, k) and log-probabilities (N, k + 1) of the blocks that begin at `starts`."""
        rows = (starts[:, None] + np.arange(self.context)).reshape(-1)
        found = np.memmap(self.path, self._row, "r")[rows]
        return (
            torch.from_numpy(found["ids"].astype(np.int64)),
            torch.from_numpy(found["log_probabilities"].astype(np.float32)),
        )

    def build(
        self, teacher: LanguageModel, limit_bytes: int, say: Callable[[str], None], alive: Alive
    ) -> None:
        """Build the cache unless it exists; `alive` is called often meanwhile.

        Raises ConfigError when it would take more than `limit_bytes`, or than the disk has left.
        """
        if self._is_whole():
            return
        self._check_size(limit_bytes)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.with_suffix(".lock"), alive):
            if not self._is_whole():
                say(
                    f"caching the teacher's {self.k} best of {self.predictions:,} predictions: "
                    f"{decimal(self.size_bytes)} in {self.path}"
                )
                self._build(teacher, alive)

    def _is_whole(self) -> bool:
        return self.path.exists() and self.path.stat().st_size == self.size_bytes

    def _check_size(self, limit_bytes: int) -> None:
        size = decimal(self.size_bytes)
        if self.size_bytes > limit_bytes:
            raise ConfigError(
                f"distillation.top_k: {self.k} makes a cache of {size}, more than "
                f"distillation.cache_limit_bytes {limit_bytes}; use a smaller top_k, or no cache "
                "(top_k: null)"
            )
        existing = next(parent for parent in self.path.absolute().parents if parent.exists())
        free = shutil.disk_usage(existing).free
        if self.size_bytes > free:
            raise ConfigError(
                f"distillation.top_k: {self.k} makes a cache of {size}, and the disk of "
                f"{existing} has {decimal(free)} left; set HPO_CACHE_DIR to another"
            )

    @torch.inference_mode()
    def _build(self, teacher: LanguageModel, alive: Alive) -> None:
        aside = self.path.with_suffix(".part")
        if aside.exists() and not since_boot(aside):
            aside.unlink()
        batch = _BATCH_BLOCKS * self.context
        with aside.open("ab") as file:
            done = file.tell() // (batch * self._row.itemsize) * batch
            file.truncate(done * self._row.itemsize)
            for first in range(done, self.predictions, batch):
                for rows in self._ask(teacher, first):
                    file.write(rows.tobytes())
                alive()
        put_in_place(aside, self.path)

    def _ask(self, teacher: LanguageModel, first: int) -> Iterator[npt.NDArray[np.void]]:
        last = min(first + _BATCH_BLOCKS * self.context, self.predictions)
        inputs = torch.from_numpy(np.asarray(self.tokens[first:last], np.int64))
        device = teacher.embedding.device
        hidden = teacher.hidden(inputs.view(-1, self.context).to(device)).flatten(0, 1)
        hidden, embedding = hidden.to(teacher.dtype), teacher.embedding.to(teacher.dtype)
        for rows in torch.split(hidden, max(16, 2**22 // self.vocabulary)):
            log_probabilities = torch.log_softmax(F.linear(rows, embedding).float(), dim=-1)
            best, ids = log_probabilities.topk(self.k, dim=-1)
            tail = log_probabilities.exp_().scatter_(1, ids, 0.0).sum(dim=1, keepdim=True).log_()
            said = np.empty(len(rows), self._row)
            said["ids"] = ids.cpu().numpy()
            said["log_probabilities"] = torch.cat([best, tail], dim=1).cpu().numpy()
            yield said

    @property
    def _row(self) -> np.dtype[np.void]:
        # The record of one prediction.
        ids = np.uint16 if self.vocabulary <= 2**16 else np.uint32
        return np.dtype([("ids", ids, (self.k,)), ("log_probabilities", np.float32, (self.k + 1,))])


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A sha256 of the names and values of `weights`."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _locked(path: Path, alive: Alive) -> AbstractContextManager[Any]:
    lock = FileLock(path, timeout=_LOCK_SECONDS)
    while True:
        try:
            return lock.acquire()
        except Timeout:
            alive()
