"""A study that asks for a good shallow model: its fronts are in the ledger, and can be exported."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from optuna.trial import TrialState

from tests.end_to_end.desk import Desk


def test_a_study_searches_for_the_best_sub_model(desk: Desk, joined: tuple[str, str]) -> None:
    file = desk.write_study(
        objectives=[{"metric": "valid_ppl_depth_2"}],
        resources={"ranks": 1},
        train={
            "steps": 6,
            "eval_every": 3,
            "model": {"layers": 3, "d_model": 32, "heads": 2, "d_ff": 64},
            "evaluation": {"depths": [2], "reference": {"depth": 4, "ppl": 5000.0}},
        },
    )
    said = desk.hpo("start", str(file), *joined)
    assert "trial 0 step 3/6\n" in said, "there is no value yet"
    assert re.search(r"best of tiny: trial \d, valid_ppl_depth_2 ", said)

    trials = desk.study().trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    for trial in trials:
        shown = desk.json("show", "tiny", str(trial.number))
        front = shown["depth_front"]
        result = json.loads((desk.folder / shown["run_dir"] / "result.json").read_text())
        assert front == [{"step": 6, **point} for point in result["depth_front"]]
        assert [p["search"] for p in front] == ["every_other", "greedy", "whole"]
        assert trial.value == min(p["valid_ppl"] for p in front[:2])
        assert shown["metrics"]["6"]["valid_ppl_depth_2"] == trial.value
        assert "valid_ppl_depth_2" not in shown["metrics"]["3"]
    assert re.search(r"\b2 +every_other +1 3 +\d", desk.hpo("show", "tiny", "0"))

    run = desk.folder / "runs" / "tiny" / "trial-0000"
    export = [sys.executable, "-m", "trainer.export", str(run), "--depth", "2", "-o", "two"]
    done = subprocess.run(export, cwd=desk.folder, env=desk.environment, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert re.fullmatch(r"two: step 6, layers \d \d of 3 \(\w+, valid_ppl [\d.]+\)\n", done.stdout)
    assert done.stderr == ""
