"""A process group of one in the tests' own process, and small trainings to run in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.processes import train
from trainer.engine.distributed import World, free_port, join, leave


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """This process as the one rank of a world: DeepSpeed engines can be built in it."""
    before = dict(os.environ)
    world = join(0, 1, 0, "127.0.0.1", free_port())
    torch.set_num_threads(1)  # tensors here are too small to share, and the cores are busy
    os.environ.clear()
    # DeepSpeed goes on reading its own; the others would make every child process a rank.
    os.environ.update(before | {"LOCAL_RANK": "0"})
    yield world
    leave()


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens are cached in a folder of this session's, for child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPO_CACHE_DIR", str(tmp_path_factory.mktemp("tokens")))
        yield


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The paths of a small text data set in which a word mostly follows from the one before."""
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    paths = {}
    for split, lines in (("train", 400), ("valid", 40), ("test", 40)):
        first, noise = rng.integers(50, size=(lines, 1)), rng.integers(2, size=(lines, 9))
        words = (first + 7 * np.arange(9) + noise) % 50
        paths[split] = str(folder / f"{split}.txt")
        text = "\n".join(" ".join(f"w{word}" for word in line) for line in words)
        Path(paths[split]).write_text(text + "\n", encoding="utf-8")
    return paths


@pytest.fixture(scope="session")
def tiny(texts: dict[str, str]) -> Callable[..., dict[str, Any]]:
    """Makes the document of a train config that takes a moment: dropout, layer dropping, ZeRO-2."""

    def document(output_dir: Path, **changes: Any) -> dict[str, Any]:
        made: dict[str, Any] = {
            "output_dir": str(output_dir),
            "seed": 3,
            "steps": 12,
            "eval_every": 4,
            "threads": 1,
            "data": {"name": "text", **texts, "context": 8, "batch_size": 8},
            "model": {"layers": 3, "d_model": 16, "heads": 2, "d_ff": 32, "dropout": 0.1},
            "layerdrop": {"policy": "linear", "p_init": 0.5, "p_final": 0.1},
            "optim": {"lr": 1e-2, "warmup_steps": 4, "accumulation": 2},
        }
        for name, change in changes.items():
            nested = isinstance(change, dict)
            made[name] = {**made.get(name, {}), **change} if nested else change
        return made

    return document


@pytest.fixture(scope="session")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., dict[str, Any]]
) -> Callable[[int], Path]:
    """Gives the folder of `tiny`, trained in one go on so many ranks."""

    @cache
    def folder(ranks: int) -> Path:
        path = tmp_path_factory.mktemp("uninterrupted") / "run"
        reports = train(tiny(path), ranks=ranks)
        assert [report.kind for report in reports[0]] == ["evaluated", "evaluated", "finished"]
        return path

    return folder
