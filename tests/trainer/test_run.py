"""A run: bit for bit the same however it was interrupted, and alike on any number of ranks."""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

import trainer.folder
from tests.trainer.processes import train
from trainer.checkpoint import CheckpointError
from trainer.config import resolve
from trainer.distributed import World, deepspeed
from trainer.run import Report, Run, StepInfo
from trainer.settings import ConfigError

Tiny = Callable[..., dict[str, Any]]
UNREPEATABLE = {"tokens_per_second", "step_seconds", "train_seconds", "peak_memory_bytes"}


def measured(folder: Path) -> list[dict[str, float]]:
    """What a run wrote of itself, without its times and memory."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in UNREPEATABLE}
        for line in lines
    ]


def state(folder: Path) -> bytes:
    """Weights and moments of the newest checkpoint, to the bit."""
    newest = max((folder / "checkpoints").iterdir())
    return (newest / "state.safetensors").read_bytes()


def train_here(document: dict[str, Any], world: World, on_step: Any = None) -> list[Report]:
    """All reports of a run in this process."""
    run = Run(resolve(document, "test"), world, on_step)
    try:
        reports = [run.advance()]
        while reports[-1].kind == "evaluated":
            reports.append(run.advance())
    finally:
        run.close()
    return reports


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]
) -> Callable[[int], Path]:
    """The folder of `tiny` trained in one go on so many ranks."""
    folders: dict[int, Path] = {}

    def folder(ranks: int, tiny: Tiny) -> Path:
        if ranks not in folders:
            folders[ranks] = tmp_path_factory.mktemp("uninterrupted") / "run"
            reports = train(tiny(folders[ranks]), ranks=ranks)
            assert [report.kind for report in reports[0]] == ["evaluated", "evaluated", "finished"]
        return folders[ranks]

    return folder


def files(folder: Path) -> list[str]:
    """All files of a run, whatever is in them."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def same(folder: Path, other: Path) -> bool:
    return measured(folder) == measured(other) and state(folder) == state(other)


def test_a_run_learns_and_says_what_it_measured(
    uninterrupted: Any, tiny: Tiny, tmp_path: Path
) -> None:
    folder = uninterrupted(1, tiny)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert lines[-1]["valid_ppl"] < lines[0]["valid_ppl"] < 60
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert lines[-1]["tokens_per_second"] > 0
    assert lines[0]["train_seconds"] < lines[-1]["train_seconds"]
    assert 2**20 < lines[-1]["peak_memory_bytes"] < 2**32
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
        ("trainer.folder.RunFolder.append_metrics", 2, False, 4),
        ("trainer.folder.save_checkpoint", 2, False, 4),
        ("trainer.checkpoint.save_file", 2, True, 4),
        ("pathlib.Path.rename", 2, False, 4),
        ("pathlib.Path.rename", 2, True, 8),
        ("trainer.engine.Engine.step", 7, True, 4),
        ("trainer.folder.RunFolder.write_result", 1, False, 12),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    uninterrupted: Any,
    tiny: Tiny,
    tmp_path: Path,
    die_in: str,
    die_call: int,
    die_after: bool,
    goes_on_at: int,
) -> None:
    whole, document = uninterrupted(1, tiny), tiny(tmp_path / "run")
    assert train(document, die_in=die_in, die_call=die_call, die_after=die_after) == [None]
    resumed = train(document)[0]
    assert [report.step for report in resumed] == [s for s in (8, 12) if s > goes_on_at] or [12]
    assert resumed[-1].kind == "finished"
    assert same(tmp_path / "run", whole)
    assert files(tmp_path / "run") == files(whole)


def test_two_ranks_killed_and_resumed_are_two_ranks_uninterrupted(
    uninterrupted: Any, tiny: Tiny, tmp_path: Path
) -> None:
    document = tiny(tmp_path / "run")
    killed = train(document, ranks=2, die_in="trainer.folder.save_checkpoint", die_call=2)
    assert killed[0] is None
    assert isinstance(killed[1], RuntimeError)  # it does not wait for the dead one
    assert [report.step for report in train(document, ranks=2)[1]] == [8, 12]
    assert same(tmp_path / "run", uninterrupted(2, tiny))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stopped_run_goes_on_bit_for_bit(
    uninterrupted: Any, tiny: Tiny, tmp_path: Path, ranks: int
) -> None:
    document = tiny(tmp_path / "run")
    stopped = train(document, ranks=ranks, ask_to_stop_at=5, by_rank=ranks - 1)
    assert [[(report.kind, report.step) for report in rank] for rank in stopped] == [
        [("evaluated", 4), ("stopped", stopped[0][-1].step)]
    ] * ranks
    assert stopped[0][-1].step in (5, 6)  # the callback comes after the ranks have agreed
    resumed = train(document, ranks=ranks)
    assert [report.step for report in resumed[0]] == [8, 12]
    assert same(tmp_path / "run", uninterrupted(ranks, tiny))


def test_ranks_agree_on_every_report(uninterrupted: Any, tiny: Tiny, tmp_path: Path) -> None:
    first, second = train(tiny(tmp_path / "run", steps=4), ranks=2)
    assert first == second
    assert first[-1].metrics["valid_ppl"] > 0


def test_one_and_two_ranks_train_the_same_model(tiny: Tiny, tmp_path: Path) -> None:
    plain = {"model": {"dropout": 0.0}}
    train(tiny(tmp_path / "one", **plain))
    train(tiny(tmp_path / "two", **plain), ranks=2)
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
    uninterrupted: Any, tiny: Tiny, tmp_path: Path, before: int, after: int
) -> None:
    document = tiny(tmp_path / "run", model={"dropout": 0.0})
    train(document, ranks=before, ask_to_stop_at=5)
    assert [report.step for report in train(document, ranks=after)[0]] == [8, 12]
    train(tiny(tmp_path / "whole", model={"dropout": 0.0}))
    for mine, whole in zip(measured(tmp_path / "run"), measured(tmp_path / "whole"), strict=True):
        assert mine == pytest.approx(whole, rel=1e-4)


def test_a_run_does_not_depend_on_what_its_process_trained_before(
    uninterrupted: Any, tiny: Tiny, tmp_path: Path
) -> None:
    others = [
        tiny(tmp_path / "bf16", precision="bf16", threads=2, steps=1),
        tiny(tmp_path / "diverged", optim={"lr": 1e6, "grad_clip": 0.0}, loss_limit=10.0),
        tiny(tmp_path / "other", seed=9, model={"layers": 2, "d_model": 32}, steps=5),
    ]
    train(*others, tiny(tmp_path / "run"))
    assert same(tmp_path / "run", uninterrupted(1, tiny))


def test_evaluation_and_stopping_leave_no_trace_in_the_training(
    world: World, uninterrupted: Any, tiny: Tiny, tmp_path: Path
) -> None:
    losses: dict[str, list[float]] = {"often": [], "once": []}
    for name, every in (("often", 1), ("once", 12)):
        document = tiny(tmp_path / name, eval_every=every)
        train_here(document, world, lambda info, name=name: losses[name].append(info.loss))
    assert losses["often"] == losses["once"]
    assert state(tmp_path / "often") == state(tmp_path / "once") == state(uninterrupted(1, tiny))
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


def test_a_finished_run_says_so_again_without_training(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    document = tiny(tmp_path / "run", steps=4)
    first = train_here(document, world)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    run = Run(resolve(document, "test"), world, lambda info: pytest.fail("it trained"))
    assert (run.step, run.history()) == (4, [first[-1].metrics])
    assert [run.advance(), run.advance()] == [first[-1], first[-1]]
    run.close()
    assert before == {path: path.stat().st_mtime_ns for path in before}


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


def test_bf16_trains_and_resumes_bit_for_bit(world: World, tiny: Tiny, tmp_path: Path) -> None:
    whole = train_here(tiny(tmp_path / "whole", precision="bf16"), world)
    assert whole[-1].metrics["valid_ppl"] < whole[0].metrics["valid_ppl"]
    document = tiny(tmp_path / "run", precision="bf16")
    train(document, ask_to_stop_at=6)
    train(document)
    assert same(tmp_path / "run", tmp_path / "whole")
    train_here(tiny(tmp_path / "fp32"), world)
    assert measured(tmp_path / "fp32") != measured(tmp_path / "whole")


def damage(checkpoint: Path) -> None:
    """Cut the last byte off."""
    file = checkpoint / "state.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def flip(checkpoint: Path) -> None:
    """Change one bit in the middle: the size stays right."""
    file = checkpoint / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def forget(checkpoint: Path) -> None:
    """Take the manifest away."""
    (checkpoint / "progress.json").unlink()


@pytest.mark.parametrize("harm", [damage, flip, forget])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    world: World, uninterrupted: Any, tiny: Tiny, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    document = tiny(tmp_path / "run")
    train_here(document, world)
    harm(tmp_path / "run" / "checkpoints" / "step-00000012")
    reports = train_here(document, world)
    assert [report.step for report in reports] == [12]
    assert same(tmp_path / "run", uninterrupted(1, tiny))


def test_checkpoints_that_are_all_damaged_are_an_error_and_not_a_fresh_start(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    document = tiny(tmp_path / "run")
    train_here(document, world)
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        damage(checkpoint)
    with pytest.raises(CheckpointError, match="step-00000012: cannot be read: .*damaged"):
        Run(resolve(document, "test"), world)
    train_here(tiny(tmp_path / "other", steps=1), world)  # the process is as good as new


def test_a_run_that_fell_back_keeps_what_it_fell_back_to(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    train_here(tiny(tmp_path / "run"), world)
    damage(checkpoints / "step-00000012")
    run = Run(resolve(tiny(tmp_path / "run", keep_checkpoints=1), "test"), world)
    run.request_stop()
    assert run.advance().step == 9
    run.close()
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000009"]


def test_two_runs_never_share_a_folder(
    world: World, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.folder, "LOCK_SECONDS", 0.1)
    config = resolve(tiny(tmp_path / "run"), "test")
    run = Run(config, world)
    with pytest.raises(ConfigError, match="another process is training in .*run; stop it"):
        Run(config, world)
    run.close()
    Run(config, world).close()


def test_both_ranks_hear_why_rank_0_cannot_begin(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", steps=4))
    first, second = train(tiny(tmp_path / "run", steps=4, seed=8), ranks=2)
    assert isinstance(first, ConfigError)
    assert isinstance(second, ConfigError)
    assert str(first) == str(second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"lr": 0.5}}, "config.yaml: optim.lr was 0.01 and is now 0.5"),
        ({"steps": 5}, "config.yaml: steps was 4 and is now 5"),
        ({"deepspeed": {"x": 1}}, "config.yaml: deepspeed.x was None and is now 1"),
    ],
)
def test_a_run_is_not_resumed_with_a_config_that_trains_otherwise(
    world: World, tiny: Tiny, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    train_here(tiny(tmp_path / "run", steps=4), world)
    before = files(tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        Run(resolve(tiny(tmp_path / "run", **{"steps": 4, **change}), "test"), world)
    assert files(tmp_path / "run") == before
    free = {"threads": 2, "keep_checkpoints": 1}
    Run(resolve(tiny(tmp_path / "run", steps=4, **free), "test"), world).close()


def test_a_run_that_cannot_begin_writes_nothing(world: World, tiny: Tiny, tmp_path: Path) -> None:
    for change in (
        {"data": {"batch_size": 512}},
        {"data": {"train": str(tmp_path / "missing.txt")}},
        {"deepspeed": {"zero_optimization": {"no_such_key": 1}}},
    ):
        with pytest.raises(ConfigError):
            Run(resolve(tiny(tmp_path / "run", **change), "test"), world)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(ConfigError, match="output_dir: .*run cannot be written"):
        Run(resolve(tiny(tmp_path / "run"), "test"), world)


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
    assert not [thing for thing in gc.get_objects() if type(thing) is deepspeed.DeepSpeedEngine]

    threads = torch.get_num_threads()
    train_here(tiny(tmp_path / "threads", threads=threads + 1, steps=1), world)
    assert torch.get_num_threads() == threads
    assert sys.float_info.min / 2 > 0.0  # others may need numbers as small as this


def test_peak_memory_is_that_of_the_run_and_not_of_the_process(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    big = {"model": {"d_model": 512, "heads": 4, "d_ff": 2048}, "steps": 1}
    first = train_here(tiny(tmp_path / "big", **big), world)[-1].metrics["peak_memory_bytes"]
    second = train_here(tiny(tmp_path / "small", steps=1), world)[-1].metrics["peak_memory_bytes"]
    assert first > second + 100e6


def test_the_final_weights_are_in_the_checkpoint_by_name(uninterrupted: Any, tiny: Tiny) -> None:
    folder = uninterrupted(1, tiny)
    tensors = load_file(folder / "checkpoints" / "step-00000012" / "state.safetensors")
    assert tensors["weights/embedding"].shape == (52, 16)
    assert tensors["weights/blocks.2.expand.weight"].dtype == torch.float32
    assert tensors["optimizer_steps"].item() == 12


def test_gradients_that_are_not_finite_are_divergence(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    # The loss is finite still, and DeepSpeed would skip such a step, and the next, in silence.
    run = Run(resolve(tiny(tmp_path / "run"), "test"), world)
    run._model.positions.register_hook(lambda gradient: gradient * math.inf)
    assert run.advance() == Report("diverged", 1, {})
    run.close()


def test_a_result_is_that_of_the_folder_s_last_run(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    # The first leaves no checkpoint, so the second may be trained otherwise.
    train_here(tiny(tmp_path / "run", steps=4, loss_limit=0.1), world)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["kind"] == "diverged"
    train_here(tiny(tmp_path / "run", steps=4), world)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["kind"] == "finished"
