"""What is written aside: whole or not there, whatever an error or a killed process leaves."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from trainer.config import whole
from trainer.config.whole import whole_file, whole_folder


def test_a_file_is_replaced_at_the_end_of_the_block_alone(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text("old")
    (tmp_path / ".result.json.writing").write_text("left by a killed process")
    with whole_file(file) as aside:
        aside.write(b"new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(file) as aside:
        aside.write(b"new")
        raise ZeroDivisionError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_is_there_at_the_end_of_the_block_alone(tmp_path: Path) -> None:
    folder, aside = tmp_path / "tokens", tmp_path / "tokens.part"
    with pytest.raises(ZeroDivisionError), whole_folder(folder, aside):
        (aside / "half").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [aside]
    with whole_folder(folder, aside) as filled:
        (filled / "all").touch()
    assert [str(path.relative_to(tmp_path)) for path in folder.rglob("*")] == ["tokens/all"]
    assert not aside.exists()


@pytest.mark.parametrize("durable", [True, False])
def test_the_disk_has_what_is_durable_before_it_gets_its_name(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, synced = tmp_path / "result.json", list[bytes]()

    def note(handle: int) -> None:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            synced.append(os.pread(handle, 9, 0) * (not file.exists()))

    monkeypatch.setattr(os, "fsync", note)
    with whole_file(file, durable=durable) as aside:
        aside.write(b"new")
    assert synced == [b"new"] * durable


def test_a_new_name_is_on_the_disk_and_all_that_a_durable_folder_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = list[str]()
    monkeypatch.setattr(whole, "sync", lambda path: synced.append(path.name))
    with whole_file(tmp_path / "file"):
        pass
    assert synced == [".file.writing", tmp_path.name]
    synced.clear()
    with whole_folder(tmp_path / "folder", tmp_path / "aside", durable=True) as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "content").touch()
    assert sorted(synced[:2]) == ["content", "inner"]
    assert synced[2:] == ["aside", tmp_path.name]
