"""A run's folder: lock and claim, identity, config, `metrics.jsonl`, `checkpoints/`, results.

Only rank 0 opens it. Whatever a kill leaves behind, opening the folder again makes all of its
files agree with its newest checkpoint. Whatever the disk refuses is a StoreError, whichever its
number: it is nobody's code. Nothing here trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout
from safetensors import SafetensorError
from torch import Tensor

from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig, load
from trainer.config.whole import sync, whole_file
from trainer.runs.checkpoint import (
    Progress,
    newest_checkpoint,
    place_checkpoint,
    write_checkpoint,
)
from trainer.runs.claim import Claim, FolderInUse
from trainer.runs.fork import changed_settings, fork_point
from trainer.runs.identity import FILE, Identity, identity_in
from trainer.runs.lock import folder_lock
from trainer.runs.store import kept_in

LOCK_SECONDS = 30.0  # a killed predecessor may take a moment to let go

# Settings that may differ when a run is resumed, because its result does not depend on them.
# Its `identity.json` tells the text, wherever that is.
_FREE = {"output_dir", "threads", "keep_checkpoints"}
_FREE |= {f"data.{key}" for key in ("dir", "train", "valid", "test")}


class FolderAway(ConfigError):
    """Nothing can be written to the run's folder."""


class LockedFolder:
    """The folder of one run, whatever it trains, while this process holds the folder's lock.

    Every method raises StoreError, and FolderInUse once another attempt has claimed the folder.
    """

    def __init__(self, path: Path, identity: Identity, attempt: int | None = None) -> None:
        """Wait for the lock of `path`, and claim it for `attempt` at the run of `identity`.

        Raises FolderInUse if another process keeps the lock, or a later attempt has claimed it;
        FolderAway if nothing can be written there; ConfigError if it is of another study.
        """
        self._path = path
        self._identity = identity
        self._lock = folder_lock(self._path, LOCK_SECONDS)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            with ExitStack() as leaving:
                leaving.callback(self._lock.release)
                identity.check_study(identity_in(path), str(path))
                self._claimed = Claim(path, attempt)
                leaving.pop_all()
        except Timeout:
            raise FolderInUse(
                f"output_dir: another process is training in {self._path}; "
                "stop it, or give another folder"
            ) from None
        except OSError as error:
            raise FolderAway(f"output_dir: {self._path} cannot be written: {error}") from None

    def append_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add a line to `metrics.jsonl`, on the disk when this returns."""
        path = self._path / "metrics.jsonl"
        with self._refusals():
            with path.open("a", encoding="utf-8") as file:
                file.write(_line(metrics))
            sync(path)

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def _identify(self, *, resumes: bool) -> None:
        """Write down what the run is of. Raises ConfigError if the folder is of something else.

        Its texts and its code may be others unless the run `resumes` from a checkpoint.
        """
        now, kept = self._identity, identity_in(self._path)
        now.check_study(kept, str(self._path))
        if resumes:
            now.check_content(kept, str(self._path))
        if (identity := now.over(kept)) != kept:
            self._write(FILE, identity.to_json())

    def _cut_metrics(self, history: Iterable[Mapping[str, float]]) -> None:
        self._write("metrics.jsonl", "".join(_line(metrics) for metrics in history))

    def _write(self, name: str, text: str) -> None:
        with self._refusals(), whole_file(self._path / name) as file:
            file.write(text.encode())

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        with self._typed():
            self._claimed.check()
            yield

    def _typed(self) -> AbstractContextManager[None]:
        return kept_in(self._path, OSError, SafetensorError)


class RunFolder(LockedFolder):
    """The folder of a run of our own trainer."""

    def __init__(
        self,
        config: TrainConfig,
        identity: Identity,
        path: Path | None = None,
        attempt: int | None = None,
    ) -> None:
        """Open `path`, or else `config.output_dir`. Raises as a LockedFolder does."""
        self._config = config
        super().__init__(path or Path(config.output_dir), identity, attempt)

    def resume(self) -> tuple[dict[str, Tensor], Progress] | None:
        """Return the newest readable checkpoint, or None, with `metrics.jsonl` cut back to it.

        A fork without a checkpoint takes over its parent's. Raises ConfigError if the folder is of
        another study, or if a checkpoint was written on another text, or with a config that trains
        differently; and CheckpointError if there are checkpoints and none can be read.
        """
        with self._typed():
            found = newest_checkpoint(self._path / "checkpoints")
            self._identify(resumes=found is not None)
        if found is not None:
            self._check_same_config()
        begins = fork_point(self._config, _FREE, self._identity) if found is None else None
        found = found or begins
        progress = found[1] if found else Progress()
        if progress.step < self._config.steps:
            with self._refusals():
                (self._path / "result.json").unlink(missing_ok=True)
        self._write("config.yaml", self._config.to_yaml())
        self._cut_metrics(progress.history)
        if begins is not None:
            self.save(*begins)  # from now on the fork does not need its parent
        return found

    def save(self, state: dict[str, Tensor], progress: Progress) -> None:
        """Write a checkpoint and delete the older ones beyond `keep_checkpoints`."""
        checkpoints = self._path / "checkpoints"
        with self._refusals():
            write_checkpoint(checkpoints, state, progress)
        with self._refusals():  # that may have taken long
            place_checkpoint(checkpoints, progress.step, self._config.keep_checkpoints)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`, whole or not at all, unless this run's is there already."""
        if not (self._path / "result.json").exists():
            self._write("result.json", json.dumps(result, indent=2) + "\n")

    def _check_same_config(self) -> None:
        path = self._path / "config.yaml"
        for key, before, now in changed_settings(load(path), self._config, _FREE):
            raise ConfigError(
                f"{path}: {key} was {before} and is now {now}; "
                "resume with the old value, or train the new one in another output_dir"
            )


def _line(metrics: Mapping[str, float]) -> str:
    return json.dumps(metrics, allow_nan=False) + "\n"
