"""The first thing a user does: `hpo start`, and the dashboard beside it."""

from __future__ import annotations

import json
import math
import re
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from benchmarks.kneser_ney import unigram_perplexity
from tests.end_to_end.conftest import Desk
from trainer.config import DataConfig
from trainer.data import load_splits


@pytest.mark.timeout(600)
def test_the_quickstart_runs_12_trials_that_beat_the_unigram_and_shows_in_the_dashboard(
    desk: Desk, tmp_path: Path
) -> None:
    study = desk.start("start")
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


def from_dashboard(desk: Desk) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the studies, and the first one's trials, from the dashboard's own HTTP API."""
    dashboard = desk.start("dashboard")
    assert dashboard.stdout is not None
    address = re.search(r"http://127\.0\.0\.1:\d+", dashboard.stdout.readline())
    assert address is not None
    desk.wait_for(lambda: responds(address[0]), timeout=20)
    studies = get(f"{address[0]}/api/studies")["study_summaries"]
    trials = get(f"{address[0]}/api/studies/{studies[0]['study_id']}?after=0")["trials"]
    dashboard.terminate()
    dashboard.wait(timeout=10)
    return [study["study_name"] for study in studies], trials


def responds(address: str) -> bool:
    try:
        get(f"{address}/api/studies")
    except OSError:
        return False
    return True


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own address
        return json.load(answer)


def unigram(cache: Path) -> float:
    """Perplexity of valid under an add-one unigram model of train."""
    splits = load_splits(DataConfig(), cache)
    found = unigram_perplexity(
        splits.tokens("train"), splits.tokens("valid"), len(splits.vocabulary)
    )
    assert math.isfinite(found)
    return found
