"""A run: bit for bit the same however it was interrupted, and alike on any number of ranks."""

from __future__ import annotations

import gc
import json
import math
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.trainer.processes import files, measured, same, state, train, train_here
from trainer.config.train import resolve
from trainer.data.splits import load_splits
from trainer.engine.distributed import World, load_deepspeed
from trainer.run import Report, Run, StepInfo

pytestmark = pytest.mark.slow

# Weights as small as these would stay whole on every rank.
SHARDED = {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
STAGE_3 = {"zero_stage": 3, "zero_optimization": SHARDED}
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}

Tiny = Callable[..., dict[str, Any]]
Uninterrupted = Callable[[int], Path]


def test_a_run_learns_and_says_what_it_measured(
    uninterrupted: Uninterrupted, tiny: Tiny, tmp_path: Path
) -> None:
    folder = uninterrupted(1)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert lines[-1]["valid_ppl"] < lines[0]["valid_ppl"] < 60
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert lines[-1]["tokens_per_second"] > 0
    assert lines[0]["train_seconds"] < lines[-1]["train_seconds"]
    assert 2**20 < lines[-1]["peak_memory_bytes"] < 2**32
    vocabulary = len(load_splits(resolve(tiny(tmp_path), "").data).vocabulary)
    shared, block = (vocabulary + 8 + 1) * 16, 4 * 16**2 + 2 * 16 * 32
    assert lines[-1]["parameters"] == shared + 3 * block
    result = json.loads((folder / "result.json").read_text())
    assert (result["kind"], result["step"], result["valid_ppl"]) == (
        "finished",
        12,
        lines[-1]["valid_ppl"],
    )
    assert set(result["versions"]) == {"python", "layerdrop-hpo", "torch", "deepspeed"}
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == ["step-00000008", "step-00000012"]


@pytest.mark.parametrize(
    ("die_in", "die_call", "die_after", "goes_on_at"),
    [
        ("trainer.runs.folder.RunFolder.append_metrics", 2, False, 4),
        ("trainer.runs.folder.write_checkpoint", 2, False, 4),
        ("trainer.runs.checkpoint.save_file", 2, True, 4),
        ("trainer.runs.checkpoint.put_in_place", 2, False, 4),
        ("trainer.runs.checkpoint.put_in_place", 2, True, 8),
        ("trainer.engine.base.Engine.step", 7, True, 4),
        ("trainer.runs.folder.RunFolder.write_result", 1, False, 12),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    uninterrupted: Uninterrupted,
    tiny: Tiny,
    tmp_path: Path,
    die_in: str,
    die_call: int,
    die_after: bool,
    goes_on_at: int,
) -> None:
    whole, document = uninterrupted(1), tiny(tmp_path / "run")
    assert train(document, die_in=die_in, die_call=die_call, die_after=die_after) == [None]
    resumed = train(document)[0]
    assert [report.step for report in resumed] == [s for s in (8, 12) if s > goes_on_at] or [12]
    assert resumed[-1].kind == "finished"
    assert same(tmp_path / "run", whole)
    assert files(tmp_path / "run") == files(whole)


def test_two_ranks_killed_and_resumed_are_two_ranks_uninterrupted(
    uninterrupted: Uninterrupted, tiny: Tiny, tmp_path: Path
) -> None:
    document = tiny(tmp_path / "run")
    killed = train(document, ranks=2, die_in="trainer.runs.folder.write_checkpoint", die_call=2)
    assert killed[0] is None
    assert isinstance(killed[1], RuntimeError)  # it does not wait for the dead one
    assert [report.step for report in train(document, ranks=2)[1]] == [8, 12]
    assert same(tmp_path / "run", uninterrupted(2))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stopped_run_goes_on_bit_for_bit(
    uninterrupted: Uninterrupted, tiny: Tiny, tmp_path: Path, ranks: int
) -> None:
    document = tiny(tmp_path / "run")
    stopped = train(document, ranks=ranks, ask_to_stop_at=5, by_rank=ranks - 1)
    assert [[(report.kind, report.step) for report in rank] for rank in stopped] == [
        [("evaluated", 4), ("stopped", stopped[0][-1].step)]
    ] * ranks
    assert stopped[0][-1].step in (5, 6)  # the callback comes after the ranks have agreed
    resumed = train(document, ranks=ranks)
    assert [report.step for report in resumed[0]] == [8, 12]
    assert same(tmp_path / "run", uninterrupted(ranks))


def test_ranks_agree_on_every_report(
    uninterrupted: Uninterrupted, tiny: Tiny, tmp_path: Path
) -> None:
    first, second = train(tiny(tmp_path / "run", steps=4), ranks=2)
    assert first == second
    assert first[-1].metrics["valid_ppl"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "deepspeed": STAGE_3,
            "data": {"context": 7},
        },  # the ranks evaluate unequal numbers of batches
        {"deepspeed": {"zero_optimization": OFFLOADED}},
    ],
    ids=["stage-2", "stage-3", "offloaded"],
)
def test_one_and_two_ranks_train_the_same_model(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain = {"model": {"dropout": 0.0}, **changes}
    train(tiny(tmp_path / "one", **plain))
    train(tiny(tmp_path / "two", **plain), ranks=2)
    assert len(measured(tmp_path / "two")) == 3
    for one, two in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def test_dropout_follows_the_data_and_not_the_rank(tiny: Tiny, tmp_path: Path) -> None:
    # One rank in two micro steps, and two ranks in one, draw the same.
    changes = {"layerdrop": {"policy": "none"}, "model": {"dropout": 0.3}}
    train(tiny(tmp_path / "one", optim={"accumulation": 2}, **changes))
    train(tiny(tmp_path / "two", optim={"accumulation": 1}, **changes), ranks=2)
    for one, two in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(
    uninterrupted: Uninterrupted, tiny: Tiny, tmp_path: Path, before: int, after: int
) -> None:
    document = tiny(tmp_path / "run", model={"dropout": 0.0})
    train(document, ranks=before, ask_to_stop_at=5)
    assert [report.step for report in train(document, ranks=after)[0]] == [8, 12]
    train(tiny(tmp_path / "whole", model={"dropout": 0.0}))
    for mine, whole in zip(measured(tmp_path / "run"), measured(tmp_path / "whole"), strict=True):
        assert mine == pytest.approx(whole, rel=1e-4)


def test_a_run_does_not_depend_on_what_its_process_trained_before(
    uninterrupted: Uninterrupted, tiny: Tiny, tmp_path: Path
) -> None:
    others = [
        tiny(tmp_path / "bf16", precision="bf16", threads=2, steps=1),
        tiny(tmp_path / "diverged", optim={"lr": 1e6, "grad_clip": 0.0}, loss_limit=10.0),
        tiny(tmp_path / "other", seed=9, model={"layers": 2, "d_model": 32}, steps=5),
    ]
    train(*others, tiny(tmp_path / "run"))
    assert same(tmp_path / "run", uninterrupted(1))


def test_evaluation_and_stopping_leave_no_trace_in_the_training(
    world: World, uninterrupted: Uninterrupted, tiny: Tiny, tmp_path: Path
) -> None:
    losses: dict[str, list[float]] = {"often": [], "once": []}
    for name, every in (("often", 1), ("once", 12)):
        document = tiny(tmp_path / name, eval_every=every)
        train_here(document, world, lambda info, name=name: losses[name].append(info.loss))
    assert losses["often"] == losses["once"]
    assert state(tmp_path / "often") == state(tmp_path / "once") == state(uninterrupted(1))
    often = measured(tmp_path / "often")
    assert sum(line["train_loss"] for line in often) / 12 == pytest.approx(
        measured(tmp_path / "once")[0]["train_loss"]
    )


def test_a_stop_at_an_evaluation_comes_after_its_report(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    def on_step(info: StepInfo) -> None:
        if info.step in (3, 11):
            threading.Thread(target=run.request_stop).start()

    run = Run(resolve(tiny(tmp_path / "run"), "test"), world, on_step)
    reports = [run.advance() for _ in range(5)]
    run.close()
    assert [(report.kind, report.step) for report in reports] == [
        ("evaluated", 4),
        ("stopped", 4),
        ("evaluated", 8),
        ("finished", 12),
        ("finished", 12),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": {"lr": 1e30, "grad_clip": 0.0, "warmup_steps": 0}},
        {"optim": {"lr": 1e30, "warmup_steps": 0}, "deepspeed": {"zero_stage": 0}},
        {"loss_limit": 3.88},
    ],
)
def test_divergence_ends_a_run_on_every_rank_at_the_same_step(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any]
) -> None:
    first, second = train(tiny(tmp_path / "run", eval_every=1, **changes), ranks=2)
    assert first == second
    assert first[-1].kind == "diverged"
    folder = tmp_path / "run"
    result = json.loads((folder / "result.json").read_text())
    assert (result["kind"], result["step"]) == ("diverged", first[-1].step)
    lines = measured(folder)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    # Nothing was kept of the step that diverged, nor of what came after it.
    assert [line["step"] for line in lines] == list(range(1, first[-1].step))
    steps_kept = [path.name for path in folder.glob("checkpoints/*")]
    assert f"step-{first[-1].step:08}" not in steps_kept
    if lines:
        assert first[-1].metrics["valid_ppl"] == lines[-1]["valid_ppl"]
    else:
        assert first[-1].metrics == {}


def test_a_perplexity_that_is_no_number_is_divergence(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    # The one step's loss is that of the weights before it, so only the evaluation can tell.
    changes = {"optim": {"lr": 1e30, "warmup_steps": 0, "accumulation": 1}, "steps": 1}
    reports = train_here(tiny(tmp_path / "run", **changes), world)
    assert reports == [Report("diverged", 1, {})]
    assert measured(tmp_path / "run") == []


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16", "deepspeed": {"zero_optimization": OFFLOADED}},
        {"precision": "fp16", "deepspeed": {"zero_stage": 0}},
        {"deepspeed": STAGE_3, "model": {"activation_checkpointing": True}},
    ],
    ids=["bf16-offloaded", "fp16", "stage-3-checkpointed"],
)
def test_whatever_saves_memory_trains_and_resumes_bit_for_bit(
    world: World, tiny: Tiny, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = train_here(tiny(tmp_path / "whole", **changes), world)
    assert whole[-1].metrics["valid_ppl"] < whole[0].metrics["valid_ppl"]
    document = tiny(tmp_path / "run", **changes)
    train(document, ask_to_stop_at=6)
    train(document)
    assert same(tmp_path / "run", tmp_path / "whole")


def test_precisions_differ_and_not_by_much(
    world: World, uninterrupted: Uninterrupted, tiny: Tiny, tmp_path: Path
) -> None:
    ppl = {"fp32": measured(uninterrupted(1))[-1]["valid_ppl"]}
    for precision in ("bf16", "fp16"):
        report = train_here(tiny(tmp_path / precision, precision=precision), world)[-1]
        ppl[precision] = report.metrics["valid_ppl"]
    assert len(set(ppl.values())) == 3
    assert ppl["bf16"] == pytest.approx(ppl["fp32"], rel=0.02)
    assert ppl["fp16"] == pytest.approx(ppl["fp32"], rel=0.02)


def test_runs_one_after_the_other_leave_nothing_behind(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    # Weights, gradients and moments are 50 MB each time.
    big = {"model": {"d_model": 256, "heads": 4, "d_ff": 1024}, "steps": 2}
    for attempt in range(3):
        train_here(tiny(tmp_path / f"warm-{attempt}", **big), world)
    gc.collect()
    before = psutil.Process().memory_info().rss
    for attempt in range(6):
        train_here(tiny(tmp_path / f"run-{attempt}", **big), world)
    gc.collect()
    grown = psutil.Process().memory_info().rss - before
    assert grown < 20e6
    kind = load_deepspeed().DeepSpeedEngine
    assert not [thing for thing in gc.get_objects() if type(thing) is kind]

    threads = torch.get_num_threads()
    train_here(tiny(tmp_path / "threads", threads=threads + 1, steps=1), world)
    assert torch.get_num_threads() == threads
    assert sys.float_info.min / 2 > 0.0  # others may need numbers as small as this


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_peak_memory_is_that_of_the_run_and_not_of_the_process(
    world: World, tiny: Tiny, tmp_path: Path, precision: str
) -> None:
    big = {"precision": precision, "model": {"d_model": 512, "heads": 4, "d_ff": 2048}, "steps": 1}
    first = train_here(tiny(tmp_path / "big", **big), world)[-1].metrics["peak_memory_bytes"]
    second = train_here(tiny(tmp_path / "small", steps=1), world)[-1].metrics["peak_memory_bytes"]
    assert first > second + 100e6


def test_gradients_that_are_not_finite_are_divergence(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    # The loss is finite still, and DeepSpeed would skip such a step, and the next, in silence.
    run = Run(resolve(tiny(tmp_path / "run"), "test"), world)
    run._model.positions.register_hook(lambda gradient: gradient * math.inf)
    assert run.advance() == Report("diverged", 1, {})
    run.close()


def test_fp16_diverges_when_no_loss_scale_is_small_enough_and_counts_until_then(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    run = Run(resolve(tiny(tmp_path / "run", precision="fp16", steps=30), "test"), world)
    run._model.positions.register_hook(lambda gradient: gradient.where(gradient == 0, math.inf))
    reports = [run.advance() for _ in range(5)]
    run.close()
    assert [(report.kind, report.step) for report in reports] == [
        *(("evaluated", step) for step in (4, 8, 12, 16)),
        ("diverged", 17),  # 2**16 was halved to 1 in 16 steps
    ]
    assert [line["overflow_steps"] for line in measured(tmp_path / "run")] == [4, 8, 12, 16]


def test_who_watches_a_run_hears_of_every_step_and_evaluated_batch(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    heard: list[str] = []
    with closing(
        Run(
            resolve(tiny(tmp_path / "run"), "test"),
            world,
            lambda info: heard.append("step"),
            lambda: heard.append("batch"),
        )
    ) as run:
        run.advance()
    assert heard[:4] == ["step"] * 4
    assert len(heard) > 8, "the valid split has several batches"
    assert set(heard[4:]) == {"batch"}
