"""A folder of checkpoints among files of others: what an editor, NFS or a desktop leaves there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.runs.checkpoint import (
    Progress,
    newest_checkpoint,
    place_checkpoint,
    write_checkpoint,
)

STRAYS = [".DS_Store", ".nfs000000000001", "Thumbs.db", "notes.txt~", "step-00000001.bak", "step-x"]


def save(folder: Path, step: int) -> None:
    write_checkpoint(folder, {"weights/a": torch.tensor([step])}, Progress(step=step))
    place_checkpoint(folder, step, keep=1)


@pytest.mark.parametrize("as_folder", [False, True])
def test_what_others_leave_beside_the_checkpoints_is_left_alone(
    tmp_path: Path, as_folder: bool
) -> None:
    save(tmp_path, 1)
    for name in STRAYS:
        (tmp_path / name).mkdir() if as_folder else (tmp_path / name).write_text("x")
    save(tmp_path, 2)
    save(tmp_path, 3)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].step == 3
    assert {path.name for path in tmp_path.iterdir()} == {*STRAYS, "step-00000003"}


def test_a_file_with_the_name_of_a_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / "step-00000009").write_text("x")
    assert newest_checkpoint(tmp_path) is None
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert (tmp_path / "step-00000009").read_text() == "x"


def test_a_checkpoint_that_cannot_be_dropped_now_is_dropped_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS a file that somebody has open keeps its folder from being removed."""
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("os.rmdir", refuse)
        save(tmp_path, 2)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].step == 2
    save(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def refuse(*arguments: object, **more: object) -> None:
    raise OSError(39, "Directory not empty")
