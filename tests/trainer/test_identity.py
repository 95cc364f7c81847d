"""A run goes on only in the folder, and on the text, that it began with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.forks import CHILD, PARENT
from tests.trainer.processes import train_here
from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig, resolve
from trainer.data.splits import data_key
from trainer.engine.distributed import World
from trainer.run import Run
from trainer.runs.folder import RunFolder
from trainer.runs.identity import Identity, identity_in
from trainer.runs.remote_folder import RemoteFolder
from trainer.runs.store import Store
from trainer.teaching.teacher import find_teacher

Tiny = Callable[..., dict[str, Any]]


def opened(folder: Path, identity: Identity) -> None:
    """Open the folder of a run as `identity` would, and leave it again."""
    run = RunFolder(TrainConfig(output_dir=str(folder)), identity)
    try:
        run.resume()
    finally:
        run.close()


def test_a_folder_keeps_what_it_is_of(tmp_path: Path) -> None:
    opened(tmp_path, Identity())
    assert not (tmp_path / "identity.json").exists(), "nothing is known"
    opened(tmp_path, Identity(data="text-1"))
    opened(tmp_path, Identity(("mine", "copied")))
    assert identity_in(tmp_path) == Identity(("mine",), "text-1")
    opened(tmp_path, Identity(data="text-2"))
    assert identity_in(tmp_path) == Identity(("mine",), "text-2"), "there was no checkpoint"
    with pytest.raises(ConfigError, match="is of another study, whose uid is 'mine', not yours"):
        opened(tmp_path, Identity(("yours",)))
    opened(tmp_path, Identity(("copy", "mine")))
    assert identity_in(tmp_path).studies == ("copy",)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"null", b'{"study": null}'])
def test_an_identity_that_is_none_is_not_known(text: bytes) -> None:
    assert Identity.of(text) == Identity()


def test_a_url_of_another_study_is_left_alone(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/run"
    Store(url).write("identity.json", Identity(("theirs",)).to_json().encode())
    before = sorted(tmp_path.rglob("*"))
    config = TrainConfig(output_dir=url)
    with pytest.raises(ConfigError, match="is of another study"):
        RemoteFolder(config, 1, lambda: None, Identity(("ours",)))
    assert sorted(tmp_path.rglob("*")) == before, "no attempt was claimed"


@pytest.mark.slow
def test_a_run_on_another_text_does_not_go_on_and_nothing_learns_from_it(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    texts = {split: str(tmp_path / f"{split}.txt") for split in ("train", "valid", "test")}
    for path in texts.values():
        Path(path).write_text("one two three four five\n" * 60)
    document = tiny(tmp_path / "run", steps=4, data=texts, **PARENT)
    train_here(document, world)
    key = data_key(resolve(document, "").data, test=False)
    assert json.loads((tmp_path / "run/identity.json").read_text())["data"] == key
    Path(texts["train"]).write_text("one two three five four\n" * 60)  # as many words
    with pytest.raises(ConfigError, match="run: was trained on another text") as refused:
        Run(resolve(document, ""), world)
    assert "\n" not in str(refused.value)
    fork = {"run": str(tmp_path / "run"), "step": 4}
    with pytest.raises(ConfigError, match="fork.run: .*run: was trained on another text"):
        Run(resolve(tiny(tmp_path / "fork", data=texts, fork=fork, **CHILD), ""), world)
    taught = {"enabled": True, "teacher": str(tmp_path / "run")}
    student = tiny(tmp_path / "student", data=texts, distillation=taught)
    with pytest.raises(ConfigError, match="teacher: .*run: was trained on another text"):
        find_teacher(resolve(student, ""))
