"""A start that fails leaves no study behind, and what could be known is known before the row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpo.control.outage import RayLost
from hpo.service import launch
from hpo.service.opening import Place
from hpo.service.run import run_study
from hpo.study.load import load_study
from hpo.workers import ray_start
from storage import Ledger, StudyNotFound
from tests.hpo.stage import Stage, finish
from tests.hpo.study_files import written
from trainer.config.settings import ConfigError

URL = "sqlite:///hpo.db"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def start() -> launch.Launch:
    study = load_study(written(Path()))
    return launch.start(study, "study.yaml", Place(URL), may_rename=False, say=print)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def session(*_: object, **__: object) -> Iterator[None]:
        raise RayLost("Ray did not start: no room")
        yield

    monkeypatch.setattr(ray_start, "ray_session", session)


@pytest.mark.usefixtures("no_ray")
def test_a_study_whose_ray_does_not_start_leaves_its_name_free() -> None:
    for _ in range(2):
        ending = run_study(start())
        assert (ending.status, ending.message) == (
            1, "study tiny did not start: Ray did not start: no room"
        )  # fmt: skip
        assert Ledger.open(URL).studies() == []


@pytest.mark.usefixtures("no_ray")
def test_a_study_that_was_begun_before_or_that_others_run_stays() -> None:
    begun = start()
    joined = begun.ledger.acquire(begun.record, join=True)
    lease = begun.ledger.acquire(begun.record, join=True)
    assert not begun.ledger.withdraw(begun.record, lease), "another controller runs it"
    begun.ledger.release(joined)
    begun.ledger.release(lease)
    again = launch.resume("tiny", Place(URL), trials=None, same_machine=False, say=print)
    ending = run_study(again)
    assert ending.message.startswith("left study tiny: Ray did not start: no room; go on with: ")
    assert [study.name for study in begun.ledger.studies()] == ["tiny"]


def test_a_study_with_a_trial_is_not_withdrawn(here: Path) -> None:
    stage = Stage(f"sqlite:///{here}/stage.db")
    controller = stage.controller()
    finish(controller)
    assert not stage.ledger.withdraw(stage.record, controller.leased.lease)
    assert len(stage.trials) == 1


def text(**data: Any) -> dict[str, Any]:
    Path("text.txt").write_text("a b c d e f g\n" * 20)  # 160 tokens
    Path("short.txt").write_text("a b c\n" * 2)
    train, valid = data.pop("train", "text.txt"), "text.txt"
    data = {"name": "text", "train": train, "valid": valid, "context": 8, "batch_size": 4, **data}
    return {"steps": 20, "eval_every": 10, "data": data}


@pytest.mark.parametrize(
    ("train", "space", "said"),
    [
        ({"train": "short.txt"}, {}, "data.batch_size: 4 sequences of data.context 8 need 40 "),
        (
            {},
            {"data.batch_size": [4, 64]},
            "space.data.batch_size: 64: data.batch_size: 64 sequences of data.context 8 need 520 ",
        ),
        (
            {},
            {"data.batch_size": [4, 12], "data.context": [4, 16]},
            "space: data.context=16, data.batch_size=12: data.batch_size: 12 sequences of ",
        ),
        (
            {},
            {"data.train": ["text.txt", "short.txt"]},
            "short.txt: data.batch_size: 4 sequences of ",
        ),
        ({}, {"data.train": ["text.txt", "gone.txt"]}, "gone.txt: no such file"),
    ],
)
def test_a_text_too_short_for_any_trial_s_batch_is_found_at_the_start(
    train: dict[str, Any], space: dict[str, list[Any]], said: str
) -> None:
    dimensions = {path: {"type": "categorical", "choices": each} for path, each in space.items()}
    changes = {"space": dimensions} if space else {}
    with pytest.raises(ConfigError) as refused:
        load_study(written(Path(), train=text(**train), **changes))
    assert said in str(refused.value)


def test_texts_that_are_long_enough_are_taken() -> None:
    study = load_study(written(Path(), train=text()))
    assert study.train["data"]["batch_size"] == 4


def test_a_study_that_was_renamed_since_its_command_read_it_keeps_no_lease() -> None:
    begun = start()
    begun.ledger.rename_study(begun.record, "other")
    with pytest.raises(StudyNotFound):
        run_study(begun)
    controllers = begun.ledger.controllers(begun.record)
    assert {controller.state for controller in controllers} == {"released"}
