"""Two Ray nodes with addresses of their own and no disk that they share, one of which is lost."""

from __future__ import annotations

import json
import re
import sys
import uuid
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.end_to_end.desk import Desk
from tests.end_to_end.machines import Machine, Machines, reason_against

pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto", reason="moto[server] is not installed")

RAY = Path(sys.executable).parent / "ray"
S3 = "http://10.99.0.1:5000"
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": S3,
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "OMP_NUM_THREADS": "1",
    "RAY_worker_niceness": "0",  # neighbours on a busy machine would starve its ranks
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": uuid.uuid4().hex,
    # So that a node which is gone is missed within seconds.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
READ = """
import json, fsspec
files = fsspec.filesystem("s3")
found = {name: files.cat(name) for name in files.find("runs/mine/tiny")}
print(json.dumps({name: content.decode("utf-8", "replace") for name, content in found.items()}))
"""
EVALUATED = list(range(50, 301, 50))
MAKE = f"""
import sys, urllib.request
try:
    urllib.request.urlopen(urllib.request.Request("{S3}/runs", method="PUT"))
except OSError:
    sys.exit("not yet")
"""


@pytest.fixture
def machines(desk: Desk, tmp_path: Path) -> Machines:
    """None yet; they end with the desk."""
    if reason := reason_against():
        pytest.skip(reason)
    return Machines(desk, tmp_path)


def join(machines: Machines, head: Machine) -> Machine:
    """One more node of one CPU, which sees nothing of the user's folder."""
    node = machines.add(hidden=[machines.desk.folder], **ENVIRONMENT)
    start_ray(node, "--address", f"{head.address}:6379")
    return node


def start_ray(machine: Machine, *how: str) -> None:
    machine.start(RAY, "start", *how, "--node-ip-address", machine.address, "--num-cpus", "1",
                  "--block", "--disable-usage-stats")  # fmt: skip


def write_texts(folder: Path) -> dict[str, str]:
    """A small text data set, which every node has at the same place."""
    for split, lines in (("train", 300), ("valid", 30), ("test", 30)):
        words = " ".join(f"w{n * n % 23}" for n in range(12))
        (folder / f"{split}.txt").write_text(f"{words}\n" * lines)
    return {split: str(folder / f"{split}.txt") for split in ("train", "valid", "test")}


@pytest.mark.timeout(300)
def test_a_gang_that_spans_nodes_goes_on_elsewhere_when_one_is_lost(
    desk: Desk, machines: Machines, tmp_path: Path
) -> None:
    head = machines.add(**ENVIRONMENT)
    head.start(sys.executable, "-m", "moto.server", "-H", head.address, "-p", "5000")
    start_ray(head, "--head", "--port", "6379", "--include-dashboard", "false")
    lost = join(machines, head)
    texts = write_texts(tmp_path)
    file = desk.write_study(
        train={"steps": 300, "eval_every": 50, "data": {"name": "text", **texts, "batch_size": 8}}
    )
    desk.wait_for(lambda: answers(head), timeout=60)
    for machine in (head, lost):
        desk.wait_for(lambda node=machine: "runtime started" in node.log.read_text(), timeout=60)
    study = head.start(sys.executable, "-m", "hpo", "start", str(file), "--runs", "s3://runs/mine",
                       "--ray-address", f"{head.address}:6379")  # fmt: skip
    desk.wait_for(lambda: study.poll() is not None or checkpointed(head), timeout=90)
    assert study.poll() is None, head.log.read_text()
    for machine in (head, lost):
        assert [machine.has(rank) for rank in desk.ranks()].count(True) == 1
    lost.lose()
    known = checkpointed(head)
    join(machines, head)
    assert study.wait(timeout=120) == 0, head.log.read_text()

    kept = json.loads(head.run(sys.executable, "-c", READ))
    for trial in desk.study().trials:
        assert trial.state is TrialState.COMPLETE
        assert sorted(trial.intermediate_values) == EVALUATED
        folder = trial.user_attrs["run_dir"].removeprefix("s3://")
        steps = [json.loads(line)["step"] for line in kept[f"{folder}/metrics.jsonl"].splitlines()]
        assert steps == EVALUATED, "without gap or repeat"
        attempt = trial.user_attrs["attempts"]
        for name in ("config.yaml", "result.json", "rank-0.attempt-1.log", "rank-1.attempt-1.log",
                     f"checkpoints/attempt-000{attempt}/step-00000300/progress.json"):  # fmt: skip
            assert f"{folder}/{name}" in kept
    lost_one, second = desk.json("show", "tiny", "0")["attempts"]
    assert lost_one["reason"] == "worker_lost"
    assert lost_one["detail"], "says how it was lost"
    assert second["first_step"] >= known[-1]
    assert second["first_step"] - lost_one["last_step"] in (0, 50), "from the last checkpoint"
    assert len(list(tmp_path.glob("machine[13]/scratch/*"))) <= 1, "a killed rank's, for a minute"


def answers(head: Machine) -> bool:
    """Whether the S3 server is there, which then has its bucket."""
    return head.start(sys.executable, "-c", MAKE).wait() == 0


def checkpointed(head: Machine) -> list[int]:
    """The steps of the first checkpoints of trial 0, once there are two: by the server."""
    # Not by the ledger: to open it while it is made disturbs the study.
    kept = r"PUT /runs/mine/tiny/trial-0000/checkpoints/attempt-0001/step-0*(\d+)/progress.json"
    steps = [int(step) for step in re.findall(kept, head.log.read_text())]
    return steps if len(steps) > 1 else []
