"""Two attempts at one run whose lock was lost, as on a network disk: the later one is alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo.workers.failures import Failure, typed
from hpo.workers.own_folder import OwnFolder
from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig, resolve
from trainer.runs import folder
from trainer.runs.checkpoint import Progress
from trainer.runs.claim import FolderInUse
from trainer.runs.folder import LockedFolder, RunFolder
from trainer.runs.identity import Identity

STATE = {"weights/a": torch.zeros(2)}


def config_in(place: Path) -> TrainConfig:
    return resolve({"output_dir": str(place), "steps": 9}, "test")


def unlocked(run: LockedFolder) -> None:
    """Its machine was cut off, and the server has given its lock away."""
    run._lock.release()


def content(place: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file()
    }


def refused(work: Callable[[], Any], words: str) -> None:
    with pytest.raises(FolderInUse, match=words):
        work()


def test_an_attempt_that_was_overtaken_writes_nothing_more(tmp_path: Path) -> None:
    late = RunFolder(config_in(tmp_path), Identity(), attempt=1)
    late.resume()
    late.append_metrics({"step": 1.0})
    late.save(STATE, Progress(step=1, history=[{"step": 1.0}]))
    unlocked(late)
    newer = RunFolder(config_in(tmp_path), Identity(), attempt=2)
    found = newer.resume()
    assert found is not None
    assert found[1].step == 1
    before = content(tmp_path)
    words = "attempt 2 on .* trains in .* now; stop it, or give another folder"
    refused(lambda: late.append_metrics({"step": 2.0}), words)
    refused(lambda: late.save(STATE, Progress(step=2)), words)
    refused(lambda: late.write_result({"kind": "finished"}), words)
    refused(late.resume, words)
    failure = typed(lambda: late.save(STATE, Progress(step=2)), tmp_path)
    assert isinstance(failure, Failure)
    assert failure.kind == "busy"
    assert content(tmp_path) == before
    newer.save(STATE, Progress(step=2))
    newer.close()


def test_one_that_opens_the_folder_late_is_refused_and_leaves_its_lock(tmp_path: Path) -> None:
    RunFolder(config_in(tmp_path), Identity(), attempt=3).close()
    refused(lambda: RunFolder(config_in(tmp_path), Identity(), attempt=2), "attempt 3 on")
    RunFolder(config_in(tmp_path), Identity(), attempt=3).close()


def test_one_of_another_study_is_told_so_and_claims_nothing(tmp_path: Path) -> None:
    first = RunFolder(config_in(tmp_path), Identity(("first",)), attempt=3)
    first.resume()
    unlocked(first)
    for attempt in (1, 9):
        with pytest.raises(ConfigError, match="is of another study"):
            RunFolder(config_in(tmp_path), Identity(("second",)), attempt=attempt)
    first.append_metrics({"step": 1.0})


def test_one_that_was_overtaken_while_it_wrote_puts_nothing_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = RunFolder(config_in(tmp_path), Identity(), attempt=1)
    unlocked(late)
    write = folder.write_checkpoint

    def slowly(*arguments: Any) -> None:
        write(*arguments)
        RunFolder(config_in(tmp_path), Identity(), attempt=2).close()

    monkeypatch.setattr(folder, "write_checkpoint", slowly)
    refused(lambda: late.save(STATE, Progress(step=1)), "attempt 2 on")
    newer = RunFolder(config_in(tmp_path), Identity(), attempt=2)
    assert newer.resume() is None
    newer.close()


def test_a_run_that_no_ledger_numbers_is_as_late_as_the_latest(tmp_path: Path) -> None:
    """A person goes on by hand with a trial; then its study does."""
    trial = RunFolder(config_in(tmp_path), Identity(), attempt=4)
    unlocked(trial)
    by_hand = RunFolder(config_in(tmp_path), Identity())
    refused(lambda: trial.append_metrics({"step": 1.0}), "attempt 4 on")
    by_hand.append_metrics({"step": 1.0})
    unlocked(by_hand)
    again = RunFolder(config_in(tmp_path), Identity(), attempt=5)
    refused(lambda: by_hand.append_metrics({"step": 2.0}), "attempt 5 on")
    again.close()


def test_a_function_of_ones_own_is_overtaken_in_the_same_way(tmp_path: Path) -> None:
    document = {"output_dir": str(tmp_path), "steps": 9}
    late = OwnFolder(document, Identity(), 1)
    late.resume()
    with late.checkpoint(1) as files:
        (files / "state").write_text("1")
    unlocked(late)
    newer = OwnFolder(document, Identity(), 2)
    assert newer.resume() is None
    refused(lambda: late.evaluated({"step": 1.0, "loss": 1.0}), "attempt 2 on")
    refused(late.place, "attempt 2 on")
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    newer.close()
