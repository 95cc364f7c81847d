"""A study is trained in a folder whose files have the names of our packages, and of a library."""

from __future__ import annotations

import yaml

from tests.end_to_end.desk import Desk

FUNCTION = """\
def train(config, run):
    yield {"step": config["steps"], "loss": config["lr"]}
"""


def test_the_user_s_files_of_our_names_are_in_nobody_s_way(desk: Desk) -> None:
    for name in ("hpo", "storage", "psutil"):
        (desk.folder / f"{name}.py").write_text("raise SystemExit('a file of the user')\n")
    (desk.folder / "trainer.py").write_text(FUNCTION)
    study = {
        "study": "shadowed",
        "trainer": "trainer:train",
        "objectives": [{"metric": "loss"}],
        "budget": {"trials": 1},
        "resources": {"ranks": 1},
        "train": {"steps": 3},
        "space": {"lr": {"type": "float", "low": 0.1, "high": 1.0}},
    }
    (desk.folder / "study.yaml").write_text(yaml.safe_dump(study))
    assert "study shadowed is done" in desk.hpo("start", "study.yaml")
    (trial,) = desk.study("shadowed").trials
    assert trial.value == trial.params["lr"]
