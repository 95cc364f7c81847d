"""The first ten minutes: README and guides, command by command, and the dashboard beside them."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

from benchmarks.kneser_ney import unigram_perplexity
from hpo.cli import app
from tests.end_to_end.desk import Desk
from trainer.config.sections import DataConfig
from trainer.data.splits import load_splits

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/reporting.md",
    "docs/evaluating.md",
    "docs/comparing.md",
    "docs/searching.md",
    "docs/training.md",
    "docs/operating.md",
)
README = "\n".join((ROOT / page).read_text() for page in PAGES)


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def readme_commands() -> list[list[str]]:
    """Every command line of the README, without comments, in order."""
    lines = [line for block in readme_blocks("sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.timeout(800)
def test_the_readme_works_as_it_is_written(
    desk: Desk, joined: tuple[str, str], tmp_path: Path
) -> None:
    # `hpo start` trains as it does for a user; the README's own study, after it, for a moment only.
    study = yaml.safe_load(readme_blocks("yaml")[0])
    study["train"] |= {"steps": 40, "eval_every": 20}
    study["resources"]["ranks"] = 1  # two are what `torchrun` below and test_killed.py have
    (desk.folder / "study.yaml").write_text(yaml.safe_dump(study))
    for command in readme_commands():
        match command:
            case ["make", *_]:
                continue  # `make test` runs this; `make start` is `hpo start`
            case ["hpo", "start"]:
                quickstart(desk, tmp_path)
            case ["hpo", "dashboard"]:
                assert from_dashboard(desk)[0] == ["quickstart"]
            case ["hpo", "data", *_]:
                continue  # it needs the internet; test_fetch.py has a server for it
            case ["hpo", ("trials" | "best" | "show" | "report" | "export" | "copy"), *_]:
                assert desk.read(*command[1:])
            case ["hpo", ("start" | "evaluate" | "compare"), *_] | [*_, "--trials", "13"]:
                assert desk.hpo(*command[1:], *joined)
            case ["hpo", *arguments]:
                assert desk.hpo(*arguments)
            case ["python", *arguments]:
                run(desk, *arguments)
            case ["torchrun", *arguments]:
                launcher = ["-m", "torch.distributed.run", "--standalone"]
                run(desk, *launcher, *arguments, "steps=40", "eval_every=40")
            case _:
                pytest.fail(f"the README has a command that no test knows: {command}")

    assert len(desk.study("quickstart").trials) == 13, "resumed with a larger budget"
    assert len(desk.study("mine").trials) == 4
    assert len(desk.study("shorter").trials) == 2
    assert len(desk.study("shorter.evaluation").trials) == 1
    [row] = desk.json("evaluate", "shorter", "--seeds", "1")
    tested = desk.json("show", "shorter.evaluation", "0")["metrics"]["40"]
    assert (row["seeds"], row["test_ppl"]["mean"]) == ([1], tested["test_ppl"])
    [row, best] = desk.json("compare", "shorter", "--seeds", "1")["recipes"]
    assert (row["recipe"], best["recipe"]) == ("baseline-a", "best")
    assert "| best | 1 |" in (desk.folder / "table.md").read_text()
    shorter = desk.json("show", "shorter", "0")
    assert max(int(step) for step in shorter["metrics"]) <= 40
    assert (desk.folder / "other-runs" / "elsewhere" / "trial-0000" / "config.yaml").is_file()
    assert [study["study"] for study in desk.json("list", "--storage", "sqlite:///other.db")] == [
        "elsewhere"
    ]
    first = curve(desk.folder / "runs/quickstart/trial-0000")  # to where it was pruned, perhaps
    again = curve(desk.folder / "runs/again")
    assert first
    assert again[: len(first)] == first, "a trial is repeated by hand to the last bit"
    two_ranks = json.loads((desk.folder / "runs/two-ranks/result.json").read_text())
    assert math.isfinite(two_ranks["valid_ppl"])


def curve(run: Path) -> list[tuple[int, float]]:
    """Step and valid perplexity of each evaluation of a run."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [(metrics["step"], metrics["valid_ppl"]) for metrics in map(json.loads, lines)]


def test_every_command_and_option_is_in_the_readme() -> None:
    import typer

    commands = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for name, group in list(commands.items()):
        for part, command in getattr(group, "commands", {}).items():
            commands[f"{name} {part}"] = command
    missing = []
    for name, command in commands.items():
        if not re.search(rf"hpo {name}\b", README):
            missing.append(f"hpo {name}")
        for parameter in command.params:
            long = [option for option in parameter.opts if option.startswith("--")]
            missing += [option for option in long if option not in README and option != "--help"]
    assert not missing


def quickstart(desk: Desk, tmp_path: Path) -> None:
    """`hpo start`, watched from the dashboard while it runs."""
    study = desk.start_anew("start")
    desk.wait_for(lambda: desk.steps(0, "quickstart"))
    names, trials = from_dashboard(desk)
    assert names == ["quickstart"]
    assert {trial["state"] for trial in trials} & {"Running", "Complete"}
    out, err = study.communicate(timeout=500)
    assert study.returncode == 0, out + err

    trials = desk.study("quickstart").trials
    states = Counter(trial.state for trial in trials)
    assert states.total() == 12
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert desk.study("quickstart").best_value < unigram(tmp_path)
    assert "hpo show quickstart" in out, "says what to type next"
    assert re.search(r"best of quickstart: trial \d+, valid_ppl", out)
    assert (desk.folder / "runs" / "quickstart" / "log.txt").stat().st_size > 0
    assert not re.search("ray|deepspeed|tune", out.lower()), "no chatter on the terminal"


def run(desk: Desk, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, *arguments],
        cwd=desk.folder,
        env={**desk.environment, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=200,
        stdout=subprocess.DEVNULL,
    )


def from_dashboard(desk: Desk) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the studies, and the first one's trials, from the dashboard's own HTTP API."""
    with desk.dashboard() as ask:
        studies = ask("studies")["study_summaries"]
        trials = ask(f"studies/{studies[0]['study_id']}?after=0")["trials"]
    return [study["study_name"] for study in studies], trials


def unigram(cache: Path) -> float:
    """Perplexity of valid under an add-one unigram model of train."""
    splits = load_splits(DataConfig(), cache)
    found = unigram_perplexity(
        splits.tokens("train"), splits.tokens("valid"), len(splits.vocabulary)
    )
    assert math.isfinite(found)
    return found
