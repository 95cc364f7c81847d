"""Forks: from another run's checkpoint with another learning rate and drop probability."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.forks import CHILD, PARENT
from tests.trainer.processes import same, train_here
from trainer.config.settings import ConfigError
from trainer.config.train import load, resolve
from trainer.engine.distributed import World
from trainer.run import Run
from trainer.runs.checkpoint import CheckpointError

pytestmark = pytest.mark.slow

Tiny = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def parent(world: World, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose checkpoints are at steps 4 and 8."""
    folder = tmp_path_factory.mktemp("forks") / "parent"
    run = Run(resolve(tiny(folder, **PARENT), "test"), world)
    run.advance(), run.advance()
    run.close()
    return folder


def fork(tiny: Tiny, folder: Path, parent: Path, step: int = 4, **changes: Any) -> dict[str, Any]:
    return tiny(folder, **CHILD, fork={"run": str(parent), "step": step}, **changes)


def test_a_fork_is_a_run_from_step_0_whose_learning_rate_and_p_change_there(
    world: World, tiny: Tiny, tmp_path: Path, parent: Path
) -> None:
    (tmp_path / "other").mkdir()
    moved = shutil.copytree(parent, tmp_path / "other" / "parent")
    document = fork(tiny, tmp_path / "fork", moved)
    interrupted = Run(resolve(document, "test"), world)
    assert interrupted.step == 4
    interrupted.close()
    shutil.rmtree(moved)  # from here on it needs its parent no more
    train_here(document, world)
    lr = [[0.0, 1e-2], [3 / 12, 1e-2], [4 / 12, 3e-3]]
    p = [[0.0, 0.5], [3 / 12, 0.5], [4 / 12, 0.2]]
    whole = tiny(
        tmp_path / "whole",
        optim={"schedule": "piecewise", "points": lr},
        layerdrop={"policy": "piecewise", "points": p},
    )
    train_here(whole, world)
    assert same(tmp_path / "fork", tmp_path / "whole")
    assert load(tmp_path / "fork" / "config.yaml") == resolve(document, "test")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": 9}, ConfigError, r"seed is 3, and here 9; a fork may only change layerdrop"),
        ({"step": 5}, CheckpointError, r"step-00000005: cannot be read"),
    ],
)
def test_what_is_no_fork_is_refused(
    world: World,
    tiny: Tiny,
    tmp_path: Path,
    parent: Path,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        Run(resolve(fork(tiny, tmp_path / "fork", parent, **change), "test"), world)


def test_another_learning_rate_without_a_fork_is_still_refused(
    world: World, tiny: Tiny, tmp_path: Path, parent: Path
) -> None:
    copied = shutil.copytree(parent, tmp_path / "copied")
    with pytest.raises(ConfigError, match=r"layerdrop.p_init was 0.5 and is now 0.2"):
        Run(resolve(tiny(copied, **CHILD), "test"), world)


def test_a_parents_path_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "fork.yaml"
    file.write_text("fork: {run: parent, step: 4}\n")
    fork = load(file).fork
    assert fork is not None
    assert fork.run == str(tmp_path / "parent")
