"""`hpo show NAME NUMBER --config`: the train config of a trial, read back from the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo.control.attempts import TrialAttempt
from hpo.reading.views import trial_config
from storage import Point
from tests.hpo.grown import Grown
from tests.hpo.stage import Stage, finish
from trainer.config.settings import ConfigError
from trainer.config.train import resolve


def printed(stage: Stage, number: int) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(trial_config(stage.ledger, "played", number))
    return document


def as_run(assignment: TrialAttempt, **changes: Any) -> dict[str, Any]:
    return resolve({**assignment.config, **changes}, "played").model_dump(mode="json")


def test_it_is_the_config_that_the_trial_ran_with_in_a_folder_of_its_own(tmp_path: Path) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db")
    controller = stage.controller()
    finish(controller)
    assignment = controller.next()
    assert isinstance(assignment, TrialAttempt)
    assert printed(stage, 1) == as_run(assignment, output_dir="runs/played-trial-1")
    assert printed(stage, 0)["optim"]["lr"] != printed(stage, 1)["optim"]["lr"]


def test_a_trial_that_began_at_another_s_checkpoint_begins_there_again(tmp_path: Path) -> None:
    stage = Grown(tmp_path)
    stage.run()
    child = next(trial for trial in stage.trials if "parent" in trial.user_attrs)
    parent = stage.trials[child.user_attrs["parent"]]
    fork = {"run": parent.user_attrs["run_dir"], "step": child.user_attrs["parent_step"]}
    assert printed(stage, child.number)["fork"] == fork


def test_a_point_that_waits_has_none_yet(tmp_path: Path) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db")
    stage.ledger.enqueue(stage.record, [Point({"optim.lr": 1e-3}, {})])
    with pytest.raises(ConfigError, match="trial 0 waits to be tried"):
        trial_config(stage.ledger, "played", 0)
