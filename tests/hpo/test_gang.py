"""How what goes wrong in a rank becomes a typed reason. The rest of the gang is tested for real."""

from __future__ import annotations

import errno
import pickle

import pytest
import ray
import torch
from safetensors import SafetensorError
from torch.distributed import DistNetworkError

from hpo.control.assignment import Assignment, make_assignment
from hpo.control.messages import Message
from hpo.study.config import StudyConfig
from hpo.study.sections import Resources
from hpo.workers.failures import Failure, first_cause, kind_of
from hpo.workers.gang import GangFailure
from hpo.workers.ray_start import places
from hpo.workers.trainable import GangTrainable
from tests.hpo.stage import STUDY
from trainer.config.settings import ConfigError
from trainer.run import Report
from trainer.runs.checkpoint import CheckpointError, DepthPoint
from trainer.runs.claim import FolderInUse
from trainer.runs.store import StoreError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out_of_memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
        ),
        (CheckpointError("step-00000100: cannot be read"), "worker_lost"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (SafetensorError("I/O error: Read-only file system (os error 30) at path x"), "disk"),
        (SafetensorError("I/O error: Permission denied (os error 13)"), "error"),
        (StoreError("s3://runs/x: Connection refused"), "disk"),
        (FolderInUse("another process is training in runs/x"), "busy"),
        (DistNetworkError("the client socket has failed to connect"), "worker_lost"),
        (RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer"), "worker_lost"),
        (ConfigError("model: heads: 3 does not divide d_model 64"), "error"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "error"),
        (ZeroDivisionError(), "error"),
    ],
)
def test_an_exception_has_one_kind(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


def test_the_cause_is_told_from_its_consequences() -> None:
    dead = Failure("worker_lost", "ActorDiedError", dead=True)
    raised = Failure("error", "ValueError")
    lost_peer = Failure("worker_lost", "Connection closed by peer")
    memory = Failure("out_of_memory", "MemoryError")
    assert first_cause([lost_peer, raised]) is raised
    assert first_cause([raised, dead]) is dead, "a rank whose peer died may raise anything"
    assert first_cause([lost_peer, memory]) is memory
    assert first_cause([lost_peer, dead]) is dead


def test_a_failure_says_what_it_is_after_a_journey_between_processes() -> None:
    arrived = pickle.loads(pickle.dumps(GangFailure("worker_lost", "rank 1 is gone")))  # noqa: S301
    assert (arrived.kind, str(arrived)) == ("worker_lost", "rank 1 is gone")


class Resumed:
    """A gang whose run has checkpoints that no controller has heard of."""

    def __init__(self, *reports: Report) -> None:
        self.reports = reports

    def close(self) -> None:
        pass

    def start(self, assignment: Assignment) -> tuple[int, list[Report]]:
        return self.reports[-1].step, list(self.reports)


def test_a_report_that_is_delivered_late_has_its_depth_front() -> None:
    fronts: list[list[DepthPoint]] = [
        [DepthPoint(depth=2, search="greedy", layers=[1, 4], valid_ppl=ppl, parameters=9,
                    seconds_per_token=1e-5)]
        for ppl in (9.0, 8.0, 7.0)
    ]  # fmt: skip
    trainable = GangTrainable.__new__(GangTrainable)
    trainable._gang = Resumed(*(
        Report("evaluated", step, {"step": step, "valid_ppl": 5.0}, front)
        for step, front in zip((100, 200, 300), fronts, strict=True)
    ))  # type: ignore[assignment]  # fmt: skip
    config = StudyConfig.model_validate(STUDY)
    document = {"steps": 400}
    trainable._begin(
        {"assignment": make_assignment(config, 0, "trial 0", 2, document, reported_step=100)}
    )
    late = [trainable.step()["message"] for _ in range(2)]
    assert late == [
        Message("evaluated", step, {"valid_ppl": 5.0}, 300, depth_front=front)
        for step, front in ((200, fronts[1]), (300, fronts[2]))
    ]


def test_a_rank_has_its_place_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [(3.0, 1.0, True), (3.0, 4.0, True), (64.0, 8.0, False)]
    found = [{"Resources": {"CPU": c, "GPU": g}, "Alive": alive} for c, g, alive in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: [*found, {"Resources": {}, "Alive": True}])
    assert places(Resources(cpus_per_rank=2)) == 2, "6 CPUs, and yet not 3"
    assert places(Resources(cpus_per_rank=1, gpus_per_rank=1)) == 1 + 3
