"""What a disk refuses pauses the study; the same number from somebody's code fails the trial."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo.workers.failures import Failure, typed
from hpo.workers.own_folder import OwnFolder
from trainer.config.train import resolve
from trainer.runs import checkpoint, folder
from trainer.runs.checkpoint import Progress
from trainer.runs.folder import RunFolder
from trainer.runs.identity import Identity

DISKS = [
    *("ENOSPC", "EDQUOT", "EROFS", "EIO", "ESTALE", "ENODEV", "ENOTCONN", "ETIMEDOUT", "EACCES"),
    *("EPERM", "EBUSY", "ENOTEMPTY", "ENOENT", "EHOSTDOWN", "EREMOTEIO", "ENXIO"),
]


def kind(work: Callable[[], Any], run: Path) -> str | None:
    failure = typed(work, run)
    return failure.kind if isinstance(failure, Failure) else None


def refusing(name: str, path: str | None = None) -> Callable[..., None]:
    """What fails as the operating system would say it; a write says no path."""
    number = getattr(errno, name)

    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(number, name, path)

    return refuse


@pytest.mark.parametrize("name", DISKS)
def test_whatever_number_a_disk_answers_our_own_files_are_its_matter(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve({"output_dir": str(tmp_path), "steps": 9}, "test")
    run = RunFolder(config, Identity())
    monkeypatch.setattr(checkpoint, "sync", refusing(name))
    monkeypatch.setattr(folder, "sync", refusing(name))
    state = {"weights/a": torch.zeros(2)}
    assert kind(lambda: run.save(state, Progress(step=1)), tmp_path) == "disk"
    assert kind(lambda: run.append_metrics({"step": 1.0}), tmp_path) == "disk"
    run.close()
    monkeypatch.undo()
    again = RunFolder(config, Identity())
    monkeypatch.setattr(Path, "mkdir", refusing(name, str(tmp_path / "checkpoints")))
    assert kind(lambda: again.save(state, Progress(step=1)), tmp_path) == "disk"
    again.close()


@pytest.mark.parametrize("name", sorted({*DISKS} - {"ENOENT"}))
def test_what_a_function_of_ones_own_cannot_write_in_its_run_folder_is_the_disk_s_matter(
    tmp_path: Path, name: str
) -> None:
    assert kind(refusing(name, str(tmp_path / "mine.pt")), tmp_path) == "disk"


@pytest.mark.parametrize("name", ["ENOENT", "EACCES", "ENOTEMPTY", "EBUSY", "EISDIR"])
def test_what_is_wrong_with_another_file_is_an_error_of_the_code(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert kind(refusing(name, str(tmp_path / "data.csv")), run) == "error"
    assert kind(refusing(name, str(tmp_path / "run-2" / "data.csv")), run) == "error"
    assert kind(refusing(name), run) == "error", "a socket, say"


def test_a_file_that_the_code_has_never_written_is_an_error_unless_the_folder_is_gone(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert kind(lambda: (run / "typo.csv").read_text(), run) == "error"
    run.rmdir()
    assert kind(lambda: (run / "typo.csv").read_text(), run) == "disk"


def test_a_disk_without_room_under_torch_save_is_the_disk_s_matter(tmp_path: Path) -> None:
    """Its own error does not say why it could not write."""
    state = {"a": torch.zeros(100_000)}
    assert kind(lambda: torch.save(state, "/dev/full"), tmp_path) == "disk"


def test_a_run_folder_that_cannot_be_made_is_the_disk_s_matter(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to("/no/such/disk")
    run = tmp_path / "runs" / "mine"
    config = resolve({"output_dir": str(run)}, "test")
    assert kind(lambda: RunFolder(config, Identity()), run) == "disk"


def test_own_checkpoints_among_files_of_others_are_found_and_kept(tmp_path: Path) -> None:
    run = OwnFolder({"output_dir": str(tmp_path), "steps": 9}, Identity(), 1)
    run.resume()
    for step in (1, 2, 3):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / ".DS_Store").write_text("x")
        with run.checkpoint(step) as files:
            (files / "state").write_text(str(step))
            (files / ".nfs000000000001").write_text("open still")
        run.evaluated({"step": float(step), "loss": 1.0})
    run.close()
    for stray in tmp_path.rglob(".nfs*"):
        stray.unlink()
    again = OwnFolder({"output_dir": str(tmp_path), "steps": 9}, Identity(), 2)
    saved = again.resume()
    again.close()
    assert saved is not None
    assert (saved.step, (saved.files / "state").read_text()) == (3, "3")
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {".DS_Store", "step-00000002", "step-00000003"}
