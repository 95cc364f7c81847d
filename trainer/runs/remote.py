"""How a run is kept at an fsspec URL, and how it is brought to this node.

    URL/identity.json  config.yaml  metrics.jsonl  result.json
    URL/checkpoints/attempt-0002/claimed
    URL/checkpoints/attempt-0002/step-00000400/state.safetensors, progress.json

A checkpoint's `progress.json`, which has the size and sha256 of the other file, is uploaded last:
before that, the checkpoint does not count. Runs are only read here. This imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from trainer.config.cache import cache_dir
from trainer.config.settings import ConfigError, is_url
from trainer.config.whole import whole_folder
from trainer.runs.identity import FILE
from trainer.runs.store import Store

PARTS = ("state.safetensors", "progress.json")  # of a checkpoint; the second says it is whole
_CHECKPOINT = re.compile(r"checkpoints/attempt-(\d+)/step-(\d+)/progress\.json")


def local_checkpoint(step: int) -> str:
    """The path of the checkpoint at `step` in a run's folder on a node."""
    return f"checkpoints/step-{step:08}"


def attempt_folder(attempt: int) -> str:
    """The path, in a run at a URL, of what `attempt` wrote."""
    return f"checkpoints/attempt-{attempt:04}"


def kept_checkpoint(attempt: int, step: int) -> str:
    """The path, in a run at a URL, of the checkpoint at `step` that `attempt` wrote."""
    return f"{attempt_folder(attempt)}/step-{step:08}"


def checkpoints(store: Store) -> list[tuple[int, int]]:
    """Attempt and step of each checkpoint in `store`, ordered by attempt and then by step."""
    found = map(_CHECKPOINT.fullmatch, store.names("checkpoints"))
    return sorted((int(match[1]), int(match[2])) for match in found if match)


def bring_checkpoint(store: Store, attempt: int, step: int, folder: Path) -> None:
    """Copy those files of a checkpoint that exist into the run's folder here."""
    for part in PARTS:
        there = f"{kept_checkpoint(attempt, step)}/{part}"
        store.download(there, folder / local_checkpoint(step) / part)


def has_finished(url: str, steps: int) -> bool:
    """Whether the run at `url` ended, with a checkpoint after all its `steps`."""
    store = Store(url)
    ending = json.loads(store.read("result.json") or b"{}").get("kind")
    return ending == "finished" and any(step == steps for _, step in checkpoints(store))


@contextmanager
def run_here(run: str, step: int | None = None) -> Iterator[Path]:
    """Yield the folder of `run`; for a run at a URL a copy, which the end of the block deletes.

    A copy has the config and one checkpoint of the newest attempt: that at `step`, or its last.
    """
    if not is_url(run):
        yield Path(run)
        return
    with TemporaryDirectory(prefix="hpo-run-") as folder:
        _bring_run(Store(run), Path(folder), step)
        yield Path(folder)


def brought_teacher(url: str) -> Path:
    """Copy the ended run at `url` to this node's cache, once for all gangs; return the folder.

    Raises ConfigError where no run has ended at `url`.
    """
    store = Store(url)
    ending = store.read("result.json")
    if ending is None:
        raise ConfigError(f"distillation.teacher: {url}: no run has ended there; name one that has")
    key = hashlib.sha256(url.encode() + ending).hexdigest()[:16]
    folder = cache_dir() / "teachers" / f"at-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")
            with whole_folder(folder, part, durable=True) as aside:
                (aside / "result.json").write_bytes(ending)
                _bring_run(store, aside, None)
    return folder


def _bring_run(store: Store, folder: Path, step: int | None) -> None:
    # With the newest attempt's checkpoint at `step`, or its last.
    for name in ("config.yaml", FILE):
        store.download(name, folder / name)
    wanted = [found for found in checkpoints(store) if step in (None, found[1])]
    if wanted:
        bring_checkpoint(store, *wanted[-1], folder)
