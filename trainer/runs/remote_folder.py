"""A run's folder that is kept at a URL: a scratch folder on this node, uploaded as it is written.

No lock works between nodes. Instead each attempt at a run claims its number and writes under it,
and an attempt that finds a higher number claimed gives up before it writes. The ledger numbers
attempts, and its lease decides who runs. A run goes on from the newest attempt's newest checkpoint.
Rank 0 has the whole state, whatever the ZeRO stage, so only its node has such a folder.
"""

from __future__ import annotations

import logging
import re
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from torch import Tensor

from trainer.config.cache import cache_dir
from trainer.config.settings import is_url
from trainer.config.train import TrainConfig
from trainer.runs.checkpoint import CheckpointError, Progress, checkpoint_at
from trainer.runs.claim import FolderInUse
from trainer.runs.folder import RunFolder
from trainer.runs.identity import FILE, Identity
from trainer.runs.lock import in_use
from trainer.runs.remote import (
    PARTS,
    attempt_folder,
    bring_checkpoint,
    checkpoints,
    kept_checkpoint,
    local_checkpoint,
)
from trainer.runs.store import Alive, Store

_FILES = (FILE, "config.yaml", "metrics.jsonl", "result.json")
_OF_ATTEMPT = re.compile(
    rf"checkpoints/attempt-(\d+)/(claimed|step-\d+/({'|'.join(map(re.escape, PARTS))}))"
)  # other objects are not ours
_ABANDONED_SECONDS = 60.0  # a scratch folder whose lock is free may be about to be locked

_log = logging.getLogger(__name__)


def open_folder(
    config: TrainConfig, attempt: int | None, alive: Alive, identity: Identity
) -> RunFolder:
    """Open the run's folder, on this machine or at a URL; `alive` is called as files come and go.

    `attempt` is the ledger's number, if there is one. Raises as the folder's class does.
    """
    if is_url(config.output_dir):
        return RemoteFolder(config, attempt, alive, identity)
    return RunFolder(config, identity, attempt=attempt)


class RemoteFolder(RunFolder):
    """The folder of one attempt at a run; what a method writes is at the URL when it returns.

    Every method raises StoreError, and FolderInUse once there is a newer attempt.
    """

    def __init__(
        self, config: TrainConfig, attempt: int | None, alive: Alive, identity: Identity
    ) -> None:
        """Claim `attempt`. Raises ConfigError too: the URL is wrong, or is of another study."""
        self._store = store = Store(config.output_dir, alive)
        identity.check_study(Identity.of(store.read(FILE)), store.url)
        self._attempt = attempt or self._newest_attempt() + 1
        self._check_newest()
        store.write(self._claim, f"{socket.gethostname()}\n".encode())
        super().__init__(config, identity, _new_scratch_folder())

    def resume(self) -> tuple[dict[str, Tensor], Progress] | None:
        """Resume like a RunFolder, from the newest attempt's newest checkpoint that can be read."""
        for name in _FILES:
            self._store.download(name, self._path / name)
        self._bring_newest()
        found = super().resume()
        if not (self._path / "result.json").exists():
            self._store.delete(["result.json"])
        return found

    def append_metrics(self, metrics: Mapping[str, float]) -> None:
        super().append_metrics(metrics)
        self._upload("metrics.jsonl")

    def save(self, state: dict[str, Tensor], progress: Progress) -> None:
        super().save(state, progress)
        self._check_newest()
        for part in PARTS:
            here = self._path / local_checkpoint(progress.step) / part
            self._store.upload(here, f"{kept_checkpoint(self._attempt, progress.step)}/{part}")
        self._prune(progress.step)

    def close(self) -> None:
        """Release the lock and delete the scratch folder."""
        super().close()
        shutil.rmtree(self._path, ignore_errors=True)

    @property
    def _claim(self) -> str:
        return f"{attempt_folder(self._attempt)}/claimed"

    def _newest_attempt(self) -> int:
        written = map(_OF_ATTEMPT.fullmatch, self._store.names("checkpoints"))
        return max((int(match[1]) for match in written if match), default=0)

    def _check_newest(self) -> None:
        newest = self._newest_attempt()
        if newest > self._attempt:
            raise FolderInUse(
                f"output_dir: attempt {newest} trains in {self._store.url}, and this is attempt "
                f"{self._attempt}; stop it, or give another folder"
            )

    def _bring_newest(self) -> None:
        # Raises CheckpointError when there are checkpoints and none can be read.
        first_error: CheckpointError | None = None
        for attempt, step in reversed(checkpoints(self._store)):
            bring_checkpoint(self._store, attempt, step, self._path)
            try:
                checkpoint_at(self._path / "checkpoints", step)
                return
            except CheckpointError as error:
                _log.warning("%s: attempt %d: %s", self._store.url, attempt, error)
                shutil.rmtree(self._path / local_checkpoint(step))
                first_error = first_error or error
        if first_error is not None:
            raise first_error

    def _write(self, name: str, text: str) -> None:
        super()._write(name, text)
        self._upload(name)

    def _upload(self, name: str) -> None:
        self._check_newest()
        self._store.upload(self._path / name, name)

    def _prune(self, step: int) -> None:
        # What older attempts claimed or left unfinished goes too; that of newer attempts stays.
        there = [found for found in checkpoints(self._store) if found[0] <= self._attempt]
        newest = {its_step: attempt for attempt, its_step in there if its_step <= step}
        steps = sorted(newest)[-self._config.keep_checkpoints :]
        kept = {kept_checkpoint(newest[kept_step], kept_step) for kept_step in steps}
        names = [
            name
            for name in self._store.names("checkpoints")
            if (match := _OF_ATTEMPT.fullmatch(name)) and int(match[1]) <= self._attempt
            if name != self._claim and name.rpartition("/")[0] not in kept
        ]
        # First the part without which a checkpoint does not count.
        self._store.delete(sorted(names, key=lambda name: not name.endswith(PARTS[-1])))


def _new_scratch_folder() -> Path:
    # First the folders that killed processes have left are deleted.
    scratch = cache_dir() / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    for folder in scratch.iterdir():
        with suppress(FileNotFoundError):  # another process sweeps too
            if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS and not in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)
    return Path(mkdtemp(dir=scratch))
