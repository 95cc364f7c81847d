"""The run folder of a user's own training function, whose evaluations and checkpoints agree.

A checkpoint is what the function wrote, with the evaluations up to its step. It is put in place
together with the evaluation of that step. So an attempt that goes on from it neither repeats a line
of `metrics.jsonl` nor leaves one out. Only rank 0 has such a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from trainer.config.plain import dumped
from trainer.config.settings import ConfigError, kept_document
from trainer.config.whole import sha256, sync
from trainer.runs.checkpoint import (
    CheckpointError,
    begin_checkpoint,
    newest,
    place_checkpoint,
)
from trainer.runs.folder import LockedFolder
from trainer.runs.fork import changed_leaves
from trainer.runs.identity import Identity

KEPT = 2  # checkpoints
_FILES, _MANIFEST = "files", "progress.json"
_FORMAT = 1
_STRAY = re.compile(
    r"\.nfs[0-9a-f]+|\.DS_Store|\._.*|Thumbs\.db"
)  # of systems, not of the function


class Saved(NamedTuple):
    """A checkpoint that was verified."""

    step: int
    files: Path
    history: list[dict[str, float]]  # evaluations up to its step, oldest first


class OwnFolder(LockedFolder):
    """The folder of one run, for as long as this process holds its lock."""

    def __init__(self, document: Mapping[str, Any], identity: Identity, attempt: int) -> None:
        """Wait for the lock of the `document`'s output_dir. Raises as LockedFolder does."""
        super().__init__(Path(document["output_dir"]), identity, attempt)
        self._document = dict(document)
        self._checkpoints = self._path / "checkpoints"
        self._written: tuple[int, Path] | None = None  # a checkpoint that is not in place yet
        self.history: list[dict[str, float]] = []

    def resume(self) -> Saved | None:
        """Return the newest readable checkpoint, if any, and cut `metrics.jsonl` back to it.

        Raises ConfigError if the folder is of another study, or the checkpoint was written by other
        code or with another config, and CheckpointError if there are checkpoints and none of them
        can be read.
        """
        with self._typed():
            found = newest(self._checkpoints, _read)
            self._identify(resumes=found is not None)
        if found is not None:
            self._check_same_config()
            self.history = found.history
        self._write("config.yaml", dumped(self._document))
        self._cut_metrics(self.history)
        return found

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """Give a folder to fill, which counts from the next evaluation or checkpoint on."""
        if step < self._step:
            raise ConfigError(f"a checkpoint of step {step} after the evaluation of {self._step}")
        self.place()
        with self._refusals():
            aside = begin_checkpoint(self._checkpoints, step)
            (aside / _FILES).mkdir()
        yield aside / _FILES
        self._written = step, aside
        if step == self._step:
            self.place()

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Keep the evaluation at `metrics["step"]`, and the checkpoint that was written for it."""
        step = metrics["step"]
        written = self._written[0] if self._written else 0
        if written > step:
            raise ConfigError(f"an evaluation of step {step} after a checkpoint of {written}")
        if written < step:
            self.place()
        self.history.append(metrics)
        self.append_metrics(metrics)
        self.place()

    def place(self) -> None:
        """Put in place what was written, if anything was."""
        if self._written is None:
            return
        (step, aside), self._written = self._written, None
        with self._refusals():
            files = _synced(aside / _FILES)
            manifest = {"format": _FORMAT, "files": files, "history": self.history}
            (aside / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            sync(aside / _MANIFEST)
        with self._refusals():
            place_checkpoint(self._checkpoints, step, KEPT)

    @property
    def _step(self) -> int:
        return int(self.history[-1]["step"]) if self.history else 0

    def _check_same_config(self) -> None:
        path = self._path / "config.yaml"
        kept = kept_document(path.read_text("utf-8"), str(path))
        for key, before, now in changed_leaves(kept, self._document, {"output_dir"}):
            raise ConfigError(
                f"{path}: {key} was {before} and is now {now}; "
                "resume with the old value, or train the new one under another --runs"
            )


def _synced(files: Path) -> dict[str, str]:
    """Sync all of `files` to the disk; return the digest of each file by its path there."""
    found = sorted(path for path in files.rglob("*") if not _STRAY.fullmatch(path.name))
    for path in (files, *found):
        sync(path)
    return {str(path.relative_to(files)): sha256(path) for path in found if path.is_file()}


def _read(path: Path) -> Saved:
    files = path / _FILES
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            raise ValueError(f"its format is {manifest['format']}, this version reads {_FORMAT}")
        for name, digest in manifest["files"].items():
            if sha256(files / name) != digest:
                raise ValueError(f"{name} is damaged: its sha256 is wrong")
        return Saved(int(path.name.removeprefix("step-")), files, list(manifest["history"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
