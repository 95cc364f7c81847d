"""A study goes on in folders of its own, on the texts and by the code that it began with."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo.commands.operating import copy
from hpo.control.controller import Controller
from hpo.control.messages import Message
from hpo.evaluation.evaluations import plan_evaluation
from hpo.evaluation.phase import prepare_launch
from hpo.service import launch
from hpo.service.launch import Launch
from hpo.service.opening import Place
from hpo.study.functions import source_digest
from hpo.study.load import load_study
from storage import Ledger
from tests.hpo.stage import play
from tests.hpo.study_files import written
from trainer.config.settings import ConfigError
from trainer.config.train import resolve
from trainer.data.splits import data_key
from trainer.runs.identity import Identity

FUNCTION = """\
def train(config, run):
    yield {"step": config["steps"], "loss": 1.0}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPO_RUNS", raising=False)
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def start(runs: str | None = None, *, may_rename: bool = False, **changes: Any) -> Launch:
    config = load_study(written(Path.cwd(), **changes))
    place = Place("sqlite:///hpo.db", runs)
    return launch.start(config, "study.yaml", place, may_rename=may_rename, say=print)


def resume(name: str = "tiny", *, changed_code: bool = False) -> Launch:
    place, options = Place("sqlite:///hpo.db"), {"trials": None, "same_machine": True}
    return launch.resume(name, place, say=print, changed_code=changed_code, **options)


def left(begun: Launch, identity: Identity | None, *messages: Message) -> Path:
    """Begin a trial, and leave the run folder that its gang would leave."""
    config = load_study(Path("study.yaml"))
    lease = begun.ledger.acquire(begun.record, join=True)
    controller = Controller(begun.ledger, begun.record, config, lease, begun.runs)
    folder = Path(begun.runs) / f"tiny/trial-{play(controller, *messages):04d}"
    begun.ledger.release(lease)
    folder.mkdir(parents=True)
    if identity is not None:
        (folder / "identity.json").write_text(identity.to_json())
    return folder


@pytest.mark.parametrize("runs", [None, "file://{}/bucket"])
def test_a_new_study_takes_no_folder_of_an_old_one(here: Path, runs: str | None) -> None:
    runs = runs and runs.format(here)
    left_by_another = here / ("bucket" if runs else "runs") / "tiny/trial-0000/config.yaml"
    left_by_another.parent.mkdir(parents=True)
    left_by_another.touch()
    with pytest.raises(ConfigError, match=r"/tiny has trials of another study.*; give --name NAME"):
        start(runs)
    assert not (here / "hpo.db").exists()
    assert start(runs, may_rename=True).record.name == "tiny-2"
    assert start(f"{runs or 'runs'}-2").record.name == "tiny"


def test_a_place_that_no_store_has_is_one_line() -> None:
    with pytest.raises(ConfigError, match="^--runs nowhere://bucket/tiny: "):
        start("nowhere://bucket")


def test_a_study_goes_on_in_no_folder_of_another(here: Path) -> None:
    begun = start()
    own = left(begun, Identity((begun.record.uid,)))
    resume()
    own.joinpath("identity.json").unlink()
    resume()  # of an earlier version
    own.joinpath("identity.json").write_text(Identity(("0" * 32,)).to_json())
    with pytest.raises(ConfigError, match=r"trial-0000: is of another study.* uid is '0+'"):
        resume()
    own.joinpath("identity.json").write_text(Identity((begun.record.uid,)).to_json())
    next_one = own.with_name("trial-0001")
    next_one.mkdir()
    next_one.joinpath("identity.json").write_text(Identity(("1" * 32,)).to_json())
    with pytest.raises(ConfigError, match="trial-0001: is of another study"):
        resume()


def test_a_copy_goes_on_in_a_copy_of_the_folders(here: Path) -> None:
    begun = start()
    folder = left(begun, Identity((begun.record.uid,)))
    for source, name in (("tiny", "second"), ("second", "third")):
        copy(source, to="sqlite:///hpo.db", new_name=name, storage="sqlite:///hpo.db")
        folder.parent.with_name(name).mkdir()
        there = folder.parent.with_name(name) / "trial-0000"
        there.mkdir()
        (there / "identity.json").write_bytes((folder / "identity.json").read_bytes())
        resume(name)
    ledger = Ledger.open("sqlite:///hpo.db")
    uids = [ledger.study(name).uid for name in ("third", "second", "tiny")]
    assert list(ledger.uids(ledger.study("third"))) == uids
    assert len(set(uids)) == 3
    lease = ledger.acquire(ledger.study("third"))
    controller = Controller(ledger, ledger.study("third"), begun_config(), lease, "runs")
    attempt: Any = controller.next()
    assert list(attempt.assignment.studies) == uids


def begun_config() -> Any:
    return load_study(Path("study.yaml"), name="third")


def test_a_study_whose_text_has_changed_does_not_go_on(here: Path) -> None:
    for split in ("train", "valid"):
        (here / f"{split}.txt").write_text("one two three\n" * 400)
    data = {"name": "text", "train": "train.txt", "valid": "valid.txt"}
    train = {"steps": 20, "eval_every": 10, "data": data}
    begun = start(train=train)
    key = data_key(resolve(load_study(here / "study.yaml").train, "").data, test=False)
    left(begun, Identity((begun.record.uid,), key), Message("finished", 20, {"valid_ppl": 5.0}))
    resume()
    (here / "train.txt").write_text("one two four\n" * 400)
    with pytest.raises(ConfigError, match="trial-0000: was trained on another text"):
        resume()


@pytest.fixture
def function(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write the training function `mine:train`, as a process that starts now would import it."""

    def write(text: str) -> None:
        (here / "mine.py").write_text(text)
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)

    path = [*sys.path]
    yield write
    sys.path[:] = path
    sys.modules.pop("mine", None)


def test_a_changed_training_function_goes_on_only_if_that_is_said(
    function: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    function(FUNCTION)
    own = {"trainer": "mine:train", "objectives": [{"metric": "loss"}], "train": {"steps": 5}}
    space = {"lr": {"type": "float", "low": 0.1, "high": 1.0}}
    begun = start(**own, space=space)
    digest = source_digest(sys.modules["mine"].train)
    folder = left(begun, Identity((begun.record.uid,), code=digest))
    resume()
    function(f"{FUNCTION}\nANOTHER = 1\n")
    with pytest.raises(ConfigError, match="trial-0000: was trained by other code.*--changed-code"):
        resume()
    lease = begun.ledger.acquire(begun.record)
    with pytest.raises(ConfigError, match="--changed-code: study tiny is being run by"):
        resume(changed_code=True)
    begun.ledger.release(lease)
    assert json.loads((folder / "identity.json").read_text())["code"] == digest
    resume(changed_code=True)
    assert json.loads((folder / "identity.json").read_text())["code"] != digest
    resume()


def test_changed_code_is_for_a_training_function() -> None:
    start()
    with pytest.raises(ConfigError, match="--changed-code: study tiny has no `trainer` of its own"):
        resume(changed_code=True)


def test_an_evaluation_takes_no_folder_of_an_old_one(here: Path) -> None:
    begun = start()
    left(begun, None, Message("finished", 20, {"valid_ppl": 5.0, "step_seconds": 0.1}))
    (here / "runs/tiny.evaluation/trial-0000").mkdir(parents=True)
    plan = plan_evaluation(begun.ledger, "tiny", top=1, seeds=1)
    with pytest.raises(ConfigError, match=r"tiny\.evaluation has trials of another study"):
        prepare_launch(begun.ledger, plan, Place(None))
    assert [study.name for study in begun.ledger.studies()] == ["tiny"]
