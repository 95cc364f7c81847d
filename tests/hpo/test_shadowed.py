"""Files in the folder where a person types that have the names of our packages, or of libraries."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.ours import ROOT
from hpo.study.functions import check_function, find_function
from trainer.config.settings import ConfigError

FUNCTION = "def train(config, run):\n    yield {'step': 1, 'loss': HERE}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, and the path and modules of this process as they were."""
    monkeypatch.chdir(tmp_path)
    path = [*sys.path]
    yield tmp_path
    sys.path[:] = path
    for name in [*sys.modules]:
        if name in ("own", "wave") or name.startswith("_own_"):
            del sys.modules[name]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What a Python says that has the working folder first on its path."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def shadows(folder: Path, *names: str) -> None:
    for name in names:
        (folder / f"{name}.py").write_text("raise SystemExit('a file of the user')\n")


def test_ours_are_imported_from_a_folder_that_has_files_of_their_names(here: Path) -> None:
    shadows(here, "storage", "trainer")
    done = python("-c", "import hpo; print(hpo.ConfigError.__module__, hpo.LedgerError.__module__)")
    assert done.stdout.split() == ["trainer.config.settings", "storage.errors"], done.stderr


def test_the_trainer_trains_in_a_folder_that_has_an_hpo(here: Path) -> None:
    shadows(here, "hpo", "storage")
    done = python("-m", "trainer", "missing.yaml")
    assert (done.returncode, done.stderr) == (2, "trainer: missing.yaml: no such file\n")
    shadows(here, "trainer")
    done = python("-P", "-m", "trainer", "missing.yaml")
    assert (done.returncode, done.stderr) == (2, "trainer: missing.yaml: no such file\n")


def test_a_module_of_the_user_s_that_was_first_is_named_at_once(here: Path) -> None:
    (here / "trainer.py").write_text("")
    done = python("-c", "import trainer; import hpo")
    last = done.stderr.splitlines()[-1]
    assert last == (
        f"ImportError: hpo: the module trainer is {here}/trainer.py, and hpo has a package of that "
        "name: rename yours"
    )


@pytest.mark.parametrize("place", ["trainer.py", "trainer/__init__.py", "storage.py"])
def test_a_function_in_a_file_of_our_name_is_the_user_s(here: Path, place: str) -> None:
    file = here / place
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"HERE = __file__\n{FUNCTION}")
    name = f"{place.removesuffix('/__init__.py').removesuffix('.py')}:train"
    check_function(name, "study.yaml: trainer")
    assert next(find_function(name, str(here))({}, None))["loss"] == str(file)
    assert sys.modules["trainer"].__file__ == str(ROOT / "trainer/__init__.py")


def test_a_function_in_a_folder_of_our_name_is_the_user_s(here: Path) -> None:
    (here / "trainer").mkdir()
    (here / "trainer/mine.py").write_text(f"from .part import HERE\n{FUNCTION}")
    (here / "trainer/part.py").write_text("HERE = 7\n")
    assert next(find_function("trainer.mine:train", str(here))({}, None))["loss"] == 7
    with pytest.raises(ConfigError, match=r"there is no module trainer\.other in"):
        check_function("trainer.other:train", "study.yaml: trainer")


def test_a_function_s_folder_is_first_for_its_module_and_last_for_all_others(here: Path) -> None:
    shadows(here, "colorsys")
    (here / "wave.py").write_text("HERE = 'mine'\n")
    (here / "own.py").write_text(f"from wave import HERE\n{FUNCTION}")
    assert next(find_function("own:train", str(here))({}, None))["loss"] == "mine"
    assert sys.path[-1] == str(here)
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_a_function_that_wants_a_helper_of_our_name_is_told_so_at_once(here: Path) -> None:
    (here / "trainer.py").write_text("def helper(): pass\n")
    (here / "own.py").write_text(f"from trainer import helper\nHERE = 1\n{FUNCTION}")
    with pytest.raises(ConfigError, match="cannot import name 'helper' from 'trainer'"):
        check_function("own:train", "study.yaml: trainer")
