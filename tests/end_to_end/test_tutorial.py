"""docs/tutorial.md, command by command, with a study cut down to a minute."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.desk import Desk
from trainer.config.settings import set_path
from trainer.data.corpora import CORPORA
from trainer.data.splits import data_folder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = dict[str, list[str]](sh=[], yaml=[])
for language, text in re.findall(r"^```(sh|yaml)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
    BLOCKS[language].append(text)

# Nothing of Penn Treebank is learned in so few steps; what is shown is that each command works.
CUT = {
    "budget.trials": 3,
    "pruner.min_steps": 4,
    "train.steps": 16,
    "train.eval_every": 4,
    "train.model": {"layers": 4, "d_model": 8, "heads": 2, "d_ff": 16},
    "train.optim.warmup_steps": 2,
}


@pytest.fixture
def treebank() -> Path:
    """A folder that has Penn Treebank."""
    for folder in (data_folder(None), ROOT.parent / "shared" / "data"):
        if all((folder / CORPORA["ptb"].file(split)).is_file() for split in ("train", "test")):
            return folder
    pytest.skip("Penn Treebank is not on this machine: hpo data prepare ptb")


@pytest.mark.timeout(400)
def test_the_tutorial_works_as_it_is_written(
    desk: Desk, joined: tuple[str, str], treebank: Path
) -> None:
    desk.environment["HPO_DATA_DIR"] = str(treebank)
    (desk.folder / "ptb-small.yaml").write_text(cut_down(desk.folder, treebank))
    running, said = None, ""
    # Of three trials the pruner may leave one.
    commands = "".join(BLOCKS["sh"]).replace("--seeds 3", "--seeds 1").replace("--top 2", "--top 1")
    for line in re.sub(r"--recipes \S+", "--recipes cosine+kd,best", commands).splitlines():
        match shlex.split(line):
            case ["hpo", "start", *arguments]:
                running = desk.start("start", *arguments)
                desk.wait_for(lambda: desk.steps(0, "ptb-small"))
            case ["hpo", "dashboard"]:
                with desk.dashboard() as ask:
                    [study] = ask("studies")["study_summaries"]
                assert study["study_name"] == "ptb-small"
            case ["kill", "-9", _]:
                assert running is not None
                assert re.search(r"run by: process (\d+)", said)[1] == str(running.pid)
                desk.kill(running)
            case ["hpo", ("status" | "trials" | "best" | "show" | "report"), *_]:
                said = desk.read(*shlex.split(line)[1:])
            case ["hpo", ("resume" | "evaluate" | "compare"), *_]:
                said = desk.hpo(*shlex.split(line)[1:], *joined)
            case ["hpo", *arguments]:
                said = desk.hpo(*arguments)
            case words:
                pytest.fail(f"the tutorial has a command that no test knows: {words}")

    trials = desk.study("ptb-small").trials
    assert len(trials) == 3
    assert all(trial.state.is_finished() for trial in trials)
    assert max(trial.user_attrs["attempts"] for trial in trials) == 2, "one was killed"
    assert (desk.folder / "ptb-small.html").is_file()
    assert "cosine+kd" in (desk.folder / "table.md").read_text()


def cut_down(folder: Path, treebank: Path) -> str:
    """The tutorial's study, tiny and on the beginnings of the texts."""
    [text] = BLOCKS["yaml"]
    study = yaml.safe_load(text)
    data = {"name": "text"}
    for split, file in ((s, treebank / CORPORA["ptb"].file(s)) for s in ("train", "valid", "test")):
        data[split] = str(folder / f"{split}.txt")
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        Path(data[split]).write_text("".join(lines[:200]), encoding="utf-8")
    for path, value in {**CUT, "train.data": {**study["train"]["data"], **data}}.items():
        set_path(study, path, value)
    return yaml.safe_dump(study)
