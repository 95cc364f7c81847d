"""A short study under faults of two kinds, by the code of benchmarks/chaos.py."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from benchmarks.chaos import Due, Siege, study
from benchmarks.chaos_checks import check
from benchmarks.chaos_scene import Scene


@pytest.mark.timeout(600)
def test_a_study_under_faults_ends_with_exactly_its_trials_and_reports(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path / "scene")
    faults = ["cut checkpoint", "kill raylet"]  # others have tests of their own
    config = study(3, seed=1, sampler="tpe")
    # Ray misses its daemon after some 15 s: there should be something left to train by then.
    config["train"]["steps"] = 320
    del config["pruner"]
    siege = Siege(scene, [Due(name, trial, 0.0) for trial, name in enumerate(faults)], Random(0))
    try:
        scene.start(config)
        assert siege.run() is None
        assert siege.done == 2
        checks = check(scene, config)
        assert [each for each in checks if each.broken] == []
    finally:
        scene.clear()
