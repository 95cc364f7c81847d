"""A Ray cluster that is there already: joined, used, and left as it was."""

from __future__ import annotations

import pytest

from tests.end_to_end.desk import Desk


@pytest.mark.timeout(240)
def test_a_study_joins_a_cluster_and_leaves_it_running(desk: Desk, joined: tuple[str, str]) -> None:
    file = desk.write_study(budget={"trials": 1}, train={"steps": 20})
    assert "study tiny is done" in desk.hpo("start", str(file), *joined)
    assert desk.study().best_value > 0
    desk.wait_for(lambda: not desk.ranks(), timeout=20)
    too_many = desk.write_study(study="wide", resources={"ranks": 4})
    message = desk.hpo("start", str(too_many), *joined, status=2)
    assert "4 ranks x 1 cpus_per_rank need 4 CPUS, and the Ray cluster has 2" in message
    desk.environment["RAY_AUTH_TOKEN"] = "0" * 64
    message = desk.hpo("start", str(too_many), *joined, status=2)
    assert "$RAY_AUTH_TOKEN is not its token" in message
    told = [line for line in message.splitlines() if "waiting for Ray at" not in line]
    assert len(told) == 1  # besides what a slow machine waits for
    assert [study["study"] for study in desk.json("list")] == ["tiny"], "nothing was written"


def test_a_cluster_that_does_not_answer_is_refused(desk: Desk) -> None:
    file = desk.write_study()
    message = desk.hpo("start", str(file), "--ray-address", "127.0.0.1:9", status=2)
    assert "127.0.0.1:9" in message
    assert message.count("\n") == 1
    assert not (desk.folder / "hpo.db").exists()
