"""A path leads to one place, whoever writes it: in a file, after an option, in the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo.service.opening import storage_url
from hpo.service.preflight import _check_runs
from hpo.study.load import load_study
from tests.hpo.study_files import written
from tests.trainer.processes import train_here
from trainer.config.paths import absolute
from trainer.config.settings import ConfigError
from trainer.config.train import load
from trainer.engine.distributed import World

# Spaces, a shell's and a URL's own characters, quotes, accents, other scripts, a newline.
ODD = "a b  #%&;$'\"\\[*]{x}=~é ü 日本 \u202e\nç"

TEXT = "one two three four five six\n" * 400


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder; the working folder is another."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def texts(folder: Path) -> None:
    for split in ("train", "valid"):
        (folder / f"{split}.txt").write_text(TEXT)


def test_a_path_is_from_its_file_or_from_where_one_types(home: Path, tmp_path: Path) -> None:
    assert absolute("a/b", "x") == str(tmp_path / "here/a/b")
    assert absolute("a/b", "x", Path("/file/of")) == "/file/of/a/b"
    assert absolute("/a/b", "x", Path("/file/of")) == "/a/b"
    assert absolute("~/a", "x", Path("/file/of")) == str(home / "a")
    assert absolute("s3://~/a", "x") == "s3://~/a"
    assert absolute(ODD, "x") == str(tmp_path / "here" / ODD)


def test_a_path_leads_through_links_where_the_system_says(home: Path, tmp_path: Path) -> None:
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "far/text").write_text("far")
    Path("link").symlink_to(tmp_path / "far/deep")
    assert absolute("link/text", "x") == str(tmp_path / "here/link/text"), "it may be turned later"
    assert Path(absolute("link/../text", "x")).read_text() == Path("link/../text").read_text()
    Path("round").symlink_to("round")
    with pytest.raises(ConfigError, match="^x: ../here/round: "):
        absolute("../here/round", "x")


@pytest.mark.parametrize("path", ["~nobody-of-that-name/a", "a\udcffb"])
def test_a_path_that_is_none_is_one_line(path: str) -> None:
    with pytest.raises(ConfigError, match="^--runs: ") as refused:
        absolute(path, "--runs")
    assert str(refused.value).isprintable()


def test_texts_of_a_train_config_are_beside_it(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump({"data": {"name": "text", "train": "t", "valid": "~/v"}}))
    data = load(file).data
    assert (data.train, data.valid) == (str(tmp_path / "t"), str(home / "v"))
    assert load(file, ["data.train=t"]).data.train == str(tmp_path / "here/t"), "it is typed here"
    file.write_text("output_dir: ~/run")
    assert load(file).output_dir == str(home / "run")


def test_texts_of_a_study_are_beside_the_file_that_names_them(home: Path, tmp_path: Path) -> None:
    odd = tmp_path / ODD
    (odd / "train").mkdir(parents=True)
    texts(odd / "train")
    texts(odd)
    texts(home)
    data = {"name": "text", "train": "train.txt", "valid": "~/valid.txt"}
    (odd / "train/tiny.yaml").write_text(yaml.safe_dump({"steps": 20, "data": data}))
    space = {
        "data.train": {"type": "categorical", "choices": ["~/train.txt", "train.txt"]},
        "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2},
    }
    file = written(odd, train="train/tiny.yaml", space=space)
    study = load_study(file)
    assert study.train["data"]["train"] == str(odd / "train/train.txt")
    assert study.train["data"]["valid"] == str(home / "valid.txt")
    choices: Any = study.space["data.train"]
    assert list(choices.choices) == [str(home / "train.txt"), str(odd / "train.txt")]


@pytest.mark.slow
def test_a_run_may_have_any_folder(
    world: World, tiny: Callable[..., dict[str, Any]], home: Path
) -> None:
    folder = home / ODD
    train_here(tiny(folder, steps=2, eval_every=1), world)
    (home / "link").symlink_to(folder)
    reports = train_here(tiny(home / "link", steps=2, eval_every=1), world)
    assert [report.kind for report in reports] == ["finished"], "it is the same run"


def test_runs_cannot_go_where_a_link_leads_nowhere(home: Path) -> None:
    Path("nowhere").symlink_to("gone")
    for runs in ("nowhere", "nowhere/deeper"):
        with pytest.raises(ConfigError, match="nowhere is not a folder that can be written to"):
            _check_runs(absolute(runs, "--runs"))


def test_a_ledger_may_be_at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage_url("sqlite:///~/hpo.db") == f"sqlite:///{home}/hpo.db"
    monkeypatch.setenv("HPO_STORAGE", "sqlite:///~/other.db")
    assert storage_url(None) == f"sqlite:///{home}/other.db"
    assert storage_url("postgresql://me@host/~db") == "postgresql://me@host/~db"


@pytest.mark.parametrize(
    "command",
    [
        "from hpo.cli import main; main()",
        "from trainer.__main__ import main; sys.exit(main(['tiny.yaml']))",
    ],
)
def test_a_working_folder_that_was_removed_is_one_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "gone").mkdir()
    removed = f"import os, sys; os.chdir({str(tmp_path / 'gone')!r}); os.rmdir(os.getcwd()); "
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{removed}sys.argv = ['hpo', 'list']; {command}"],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "the working folder has been removed; go to another" in done.stderr
