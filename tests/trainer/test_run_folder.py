"""A run's folder: damaged, shared, finished or of another config, it is never misread."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import trainer.runs.folder
from tests.trainer.processes import files, same, train, train_here
from trainer.config.settings import ConfigError
from trainer.config.train import resolve
from trainer.engine.distributed import World
from trainer.run import Run
from trainer.runs.checkpoint import CheckpointError

pytestmark = pytest.mark.slow

Tiny = Callable[..., dict[str, Any]]
Uninterrupted = Callable[[int], Path]


def test_a_finished_run_says_so_again_without_training(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    document = tiny(tmp_path / "run", steps=4)
    first = train_here(document, world)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    run = Run(resolve(document, "test"), world, lambda info: pytest.fail("it trained"))
    assert (run.step, [report.metrics for report in run.history()]) == (4, [first[-1].metrics])
    assert [run.advance(), run.advance()] == [first[-1], first[-1]]
    run.close()
    assert before == {path: path.stat().st_mtime_ns for path in before}


def damage(checkpoint: Path) -> None:
    """Cut the last byte off."""
    file = checkpoint / "state.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def flip(checkpoint: Path) -> None:
    """Change one bit in the middle: the size stays right."""
    file = checkpoint / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def forget(checkpoint: Path) -> None:
    """Take the manifest away."""
    (checkpoint / "progress.json").unlink()


@pytest.mark.parametrize("harm", [damage, flip, forget])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    world: World,
    uninterrupted: Uninterrupted,
    tiny: Tiny,
    tmp_path: Path,
    harm: Callable[[Path], None],
) -> None:
    document = tiny(tmp_path / "run")
    train_here(document, world)
    harm(tmp_path / "run" / "checkpoints" / "step-00000012")
    reports = train_here(document, world)
    assert [report.step for report in reports] == [12]
    assert same(tmp_path / "run", uninterrupted(1))


def test_checkpoints_that_are_all_damaged_are_an_error_and_not_a_fresh_start(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    document = tiny(tmp_path / "run")
    train_here(document, world)
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        damage(checkpoint)
    with pytest.raises(CheckpointError, match="step-00000012: cannot be read: .*damaged"):
        Run(resolve(document, "test"), world)
    train_here(tiny(tmp_path / "other", steps=1), world)  # the process is as good as new


def test_a_run_that_fell_back_keeps_what_it_fell_back_to(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    train_here(tiny(tmp_path / "run"), world)
    damage(checkpoints / "step-00000012")
    run = Run(resolve(tiny(tmp_path / "run", keep_checkpoints=1), "test"), world)
    run.request_stop()
    assert run.advance().step == 9
    run.close()
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000009"]


def test_two_runs_never_share_a_folder(
    world: World, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.runs.folder, "LOCK_SECONDS", 0.1)
    config = resolve(tiny(tmp_path / "run"), "test")
    run = Run(config, world)
    with pytest.raises(ConfigError, match="another process is training in .*run; stop it"):
        Run(config, world)
    run.close()
    Run(config, world).close()


def test_both_ranks_hear_why_rank_0_cannot_begin(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", steps=4))
    first, second = train(tiny(tmp_path / "run", steps=4, seed=8), ranks=2)
    assert isinstance(first, ConfigError)
    assert isinstance(second, ConfigError)
    assert str(first) == str(second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"lr": 0.5}}, "config.yaml: optim.lr was 0.01 and is now 0.5"),
        ({"steps": 5}, "config.yaml: steps was 4 and is now 5"),
        ({"deepspeed": {"x": 1}}, "config.yaml: deepspeed.x was None and is now 1"),
    ],
)
def test_a_run_is_not_resumed_with_a_config_that_trains_otherwise(
    world: World, tiny: Tiny, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    train_here(tiny(tmp_path / "run", steps=4), world)
    before = files(tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        Run(resolve(tiny(tmp_path / "run", **{"steps": 4, **change}), "test"), world)
    assert files(tmp_path / "run") == before
    free = {"threads": 2, "keep_checkpoints": 1}
    Run(resolve(tiny(tmp_path / "run", steps=4, **free), "test"), world).close()


def test_a_run_that_cannot_begin_writes_nothing(world: World, tiny: Tiny, tmp_path: Path) -> None:
    for change in (
        {"data": {"batch_size": 512}},
        {"data": {"train": str(tmp_path / "missing.txt")}},
        {"deepspeed": {"zero_optimization": {"no_such_key": 1}}},
    ):
        with pytest.raises(ConfigError):
            Run(resolve(tiny(tmp_path / "run", **change), "test"), world)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(ConfigError, match="output_dir: .*run cannot be written"):
        Run(resolve(tiny(tmp_path / "run"), "test"), world)


def test_the_final_weights_are_in_the_checkpoint_by_name(
    uninterrupted: Uninterrupted, tiny: Tiny
) -> None:
    folder = uninterrupted(1)
    tensors = load_file(folder / "checkpoints" / "step-00000012" / "state.safetensors")
    assert tensors["weights/embedding"].shape == (52, 16)
    assert tensors["weights/blocks.2.expand.weight"].dtype == torch.float32
    assert tensors["optimizer_steps"].item() == 12


def test_a_result_is_that_of_the_folder_s_last_run(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    # The first leaves no checkpoint, so the second may be trained otherwise.
    train_here(tiny(tmp_path / "run", steps=4, loss_limit=0.1), world)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["kind"] == "diverged"
    train_here(tiny(tmp_path / "run", steps=4), world)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["kind"] == "finished"
