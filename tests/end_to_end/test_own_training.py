"""A study of a user's own training function, started, killed and resumed by the real command."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import pytest
import yaml

from hpo.reading.views import trial_details
from hpo.training import TrainingRun
from storage import Ledger
from tests.end_to_end.desk import Desk
from tests.leases import lapse

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.timeout(600)
def test_the_example_is_killed_and_goes_on_as_if_undisturbed(
    desk: Desk, joined: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a folder of a name that nothing else has: it is found from where the command is typed.
    mine = desk.folder / "mine"
    mine.mkdir()
    (mine / "own_training.py").write_text((EXAMPLES / "own_training.py").read_text())
    study = (EXAMPLES / "own_training.yaml").read_text().replace("examples.", "mine.")
    study = study.replace("concurrent_trials: 2", "concurrent_trials: 1")
    (mine / "study.yaml").write_text(study)

    first = desk.start("start", "mine/study.yaml", "--trials", "2")
    desk.wait_for(lambda: desk.steps(0, "spirals"), timeout=240)
    first.kill()
    first.communicate()
    begun = desk.study("spirals").trials
    ledger = Ledger.open(f"sqlite:///{desk.folder}/hpo.db")
    lapse(ledger)
    assert "study spirals is done" in desk.hpo("resume", "spirals", *joined)

    trials = desk.study("spirals").trials
    assert [trial.state.is_finished() for trial in trials] == [True, True]
    assert trials[0].params == begun[0].params
    killed = trial_details(ledger, "spirals", 0)
    lost, *_, last = killed["attempts"]
    assert lost["reason"] == "controller_lost"
    assert last["first_step"] > 0, "it began at a checkpoint"
    run_dir = Path(killed["run_dir"])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert {line.pop("step"): line for line in map(dict, lines)} == killed["metrics"]
    assert desk.steps(0, "spirals") == sorted(killed["metrics"])
    monkeypatch.syspath_prepend(str(desk.folder))
    try:
        assert lines == said_at_once(run_dir, len(lines))
    finally:
        for name in ("mine", "mine.own_training"):  # other tests have a `mine`, too
            sys.modules.pop(name, None)


def said_at_once(run_dir: Path, evaluations: int) -> list[dict[str, float]]:
    """What the function says, called here with the trial's config, and never killed."""
    from mine.own_training import train  # type: ignore[import-not-found]

    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    aside = nullcontext(run_dir)
    run = TrainingRun(0, 1, "cpu", run_dir, 1, None, lambda step: aside, lambda step: None)
    return list(islice(train(config, run), evaluations))
