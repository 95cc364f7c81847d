"""Checkpoints: a run's tensors and progress, whole or not there, verified before they are used.

`checkpoints/step-00000400/` holds `state.safetensors` and `progress.json`, which has the size and
sha256 of the first. What others put beside such folders (`.DS_Store`, `.nfs0000`) is left alone.
Nothing is unpickled. Nothing here knows DeepSpeed, or a number of ranks.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpo.errors import HpoError
from trainer.config.whole import empty_folder, put_in_place, sha256, sync

FORMAT = 1
_OURS = re.compile(r"(step-|\.writing-)(\d{8,})")

T = TypeVar("T")
_log = logging.getLogger(__name__)


class CheckpointError(HpoError):
    """A run's checkpoints are there but cannot be read; the message is one line."""


class DepthPoint(TypedDict):
    """One sub-model of a trained model, or the whole model."""

    depth: int  # layers kept
    search: str  # how the layers were found: whole, every_other or greedy
    layers: list[int]  # the layers kept, 1-based
    valid_ppl: float  # over the whole split
    parameters: int
    seconds_per_token: float  # of a forward pass, loss included


@dataclass
class Progress:
    """How far a run has come: all that it needs to go on, except its tensors."""

    step: int = 0  # optimizer steps done
    train_seconds: float = 0.0
    loss_sum: float = 0.0  # of the steps since the last evaluation, nats per token
    taught_sum: float = 0.0  # the same for the teacher's term
    loss_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)  # metrics by evaluation
    # each layer's mean over the analysis steps so far, nats per token; empty before the first
    sensitivity: list[float] = field(default_factory=list)
    depth_front: list[DepthPoint] = field(default_factory=list)  # the last one measured
    # all that were measured, by step; JSON's keys are strings
    depth_fronts: dict[str, list[DepthPoint]] = field(default_factory=dict)

    def forget_losses(self) -> None:
        """Start the means since the last evaluation anew."""
        self.loss_sum, self.taught_sum, self.loss_steps = 0.0, 0.0, 0


def write_checkpoint(folder: Path, state: dict[str, Tensor], progress: Progress) -> None:
    """Write a checkpoint aside in `folder`. It counts once `place_checkpoint` has renamed it.

    A process killed at any moment leaves the old checkpoints, or those and the new one.
    """
    aside = begin_checkpoint(folder, progress.step)
    tensors = aside / "state.safetensors"
    write_tensors(state, tensors)
    sync(tensors)
    manifest = {
        "format": FORMAT,
        "bytes": tensors.stat().st_size,
        "sha256": sha256(tensors),
        "progress": dataclasses.asdict(progress),
    }
    (aside / "progress.json").write_text(json.dumps(manifest), encoding="utf-8")
    sync(aside / "progress.json")


def begin_checkpoint(folder: Path, step: int) -> Path:
    """Make an empty folder aside, to write in it the checkpoint of `step` in `folder`."""
    return empty_folder(_aside(folder, step))


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write `tensors` to `path`, for whom the umask lets read: the library lets nobody else."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path)
    path.chmod(mode)


def place_checkpoint(folder: Path, step: int, keep: int) -> None:
    """Rename the folder aside, whose files are synced; keep the newest `keep` up to `step`."""
    target = folder / f"step-{step:08}"
    if target.exists():  # unreadable, or this run would have gone on from it
        shutil.rmtree(target)
    put_in_place(_aside(folder, step), target)
    _prune(folder, step, keep)


def _aside(folder: Path, step: int) -> Path:
    return folder / f".writing-{step:08}"


def newest_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Progress] | None:
    """The newest checkpoint in `folder` that can be read, or None where there never was one.

    Raises CheckpointError when there are checkpoints and none can be read.
    """
    return newest(folder, _read)


def newest(folder: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` returns for the newest checkpoint that does not make it raise CheckpointError.

    Raises as `newest_checkpoint` does.
    """
    first_error: CheckpointError | None = None
    for _, path in reversed(_checkpoints(folder)):
        try:
            return read(path)
        except CheckpointError as error:
            _log.warning("%s; trying the one before", error)
            first_error = first_error or error
    if first_error is not None:
        raise first_error
    return None


def checkpoint_at(folder: Path, step: int) -> tuple[dict[str, Tensor], Progress]:
    """The checkpoint in `folder` at optimizer step `step`. Raises CheckpointError."""
    return _read(folder / f"step-{step:08}")


def newest_weights(folder: Path) -> dict[str, Tensor]:
    """The weights by name in the newest checkpoint of `folder` that can be read.

    Raises CheckpointError where there is none.
    """
    found = newest_checkpoint(folder)
    if found is None:
        raise CheckpointError(f"{folder}: holds no checkpoint")
    return weights_of(found[0])


def weights_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in a run's `state`, by their names in the model."""
    prefix = "weights/"
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def _read(path: Path) -> tuple[dict[str, Tensor], Progress]:
    tensors = path / "state.safetensors"
    try:
        manifest = json.loads((path / "progress.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, this version reads {FORMAT}")
        if tensors.stat().st_size != manifest["bytes"] or sha256(tensors) != manifest["sha256"]:
            raise ValueError("state.safetensors is damaged: its size or sha256 is wrong")
        return load_file(tensors), Progress(**manifest["progress"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _prune(folder: Path, step: int, keep: int) -> None:
    # A checkpoint past `step` was unreadable, or the run would have gone on from it.
    checkpoints = _checkpoints(folder)
    kept = [path for its_step, path in checkpoints if its_step <= step][-keep:]
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path not in kept:
            shutil.rmtree(path, ignore_errors=True)  # what stays goes with a later checkpoint


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    # By step, oldest first.
    found = ((_OURS.fullmatch(path.name), path) for path in folder.glob("step-*") if path.is_dir())
    return sorted((int(match[2]), path) for match, path in found if match)
