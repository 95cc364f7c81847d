"""The depth front: which layers are kept, what is measured of them, and that it is repeatable."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.processes import measured, same, train, train_here
from trainer.config.sections import DepthReference, EvaluationConfig, ModelConfig
from trainer.config.settings import ConfigError
from trainer.config.train import load, resolve
from trainer.data.batches import EvalBlocks
from trainer.data.splits import load_splits
from trainer.engine.distributed import World
from trainer.measuring.convergence import to_target
from trainer.measuring.depth import (
    depth_front,
    every_other,
    front_metrics,
    greedy,
    hypervolume,
    mask_of,
)
from trainer.model.transformer import LanguageModel
from trainer.run import Run
from trainer.runs.checkpoint import DepthPoint

Tiny = Callable[..., dict[str, Any]]
DEPTHS = {"depths": [1, 2], "reference": {"depth": 4, "ppl": 60.0}, "target_ppl": 47.0}


def runs(values: list[bool]) -> list[tuple[bool, int]]:
    """Lengths of the stretches of equal values."""
    return [(value, len(list(group))) for value, group in itertools.groupby(values)]


@given(st.integers(2, 60), st.data())
def test_every_other_keeps_both_ends_and_spreads_what_it_drops(
    layers: int, data: st.DataObject
) -> None:
    depth = data.draw(st.integers(2, layers))
    kept = every_other(layers, depth)
    assert len(kept) == depth
    assert list(kept) == sorted(set(kept))
    assert (kept[0], kept[-1]) == (1, layers)
    stretches = runs(list(mask_of(kept, layers)))
    dropped = [length for is_kept, length in stretches if not is_kept]
    # No longer chunk than the pigeonhole principle forces: where depth allows, none of two.
    assert max(dropped, default=0) == math.ceil((layers - depth) / (depth - 1))
    between = [length for is_kept, length in stretches[1:-1] if is_kept]
    assert max(between, default=0) - min(between, default=0) <= 1


@pytest.mark.parametrize(
    ("layers", "depth", "kept"),
    [
        (12, 6, (1, 3, 5, 8, 10, 12)),
        (12, 9, (1, 2, 4, 5, 7, 8, 9, 11, 12)),
        (4, 2, (1, 4)),
        (4, 4, (1, 2, 3, 4)),
        (4, 1, (1,)),
        (1, 1, (1,)),
    ],
)
def test_every_other_by_hand(layers: int, depth: int, kept: tuple[int, ...]) -> None:
    assert every_other(layers, depth) == kept


def test_the_greedy_search_drops_the_layer_that_costs_least_and_then_looks_again() -> None:
    # Layers 2 and 3 do one job: either may go, both may not.
    costs = {1: 9.0, 2: 1.0, 3: 2.0, 4: 4.0}

    def perplexity(mask: tuple[bool, ...]) -> float:
        gone = {n for n, kept in enumerate(mask, start=1) if not kept}
        return sum(costs[n] for n in gone) + (100.0 if {2, 3} <= gone else 0.0)

    assert list(greedy(4, 1, perplexity)) == [(1, 3, 4), (1, 3), (3,)]
    assert list(greedy(4, 4, perplexity)) == []
    assert next(greedy(3, 2, lambda mask: 1.0)) == (2, 3), "of equals, the first goes"


def point(depth: int, ppl: float) -> DepthPoint:
    return DepthPoint(
        depth=depth, search="greedy", layers=[], valid_ppl=ppl, parameters=0, seconds_per_token=0.0
    )


@given(
    st.lists(st.tuples(st.integers(1, 12), st.floats(1.5, 500.0)), max_size=6),
    st.integers(2, 14),
    st.floats(2.0, 400.0),
)
def test_the_hypervolume_is_the_area_that_a_grid_finds(
    front: list[tuple[int, float]], depth: int, ppl: float
) -> None:
    found = hypervolume([point(*p) for p in front], DepthReference(depth=depth, ppl=ppl))
    cells = 400  # along log perplexity; along depth, the middles of whole layers
    nats = (np.arange(cells) + 0.5) / cells * math.log(ppl)
    dominated = np.zeros((depth, cells), bool)
    for its_depth, its_ppl in front:
        dominated[its_depth:] |= nats >= math.log(its_ppl)
    assert found == pytest.approx(
        dominated.sum() * math.log(ppl) / cells, abs=depth * math.log(ppl) / cells
    )


def test_a_depths_perplexity_is_the_better_of_the_searches() -> None:
    metrics = front_metrics([point(2, 7.0), point(2, 6.0), point(3, 5.0)], None)
    assert (metrics["valid_ppl_depth_2"], metrics["valid_ppl_depth_3"]) == (6.0, 5.0)
    assert "depth_front_hypervolume" not in metrics


def front_of(folder: Path) -> list[DepthPoint]:
    front: list[DepthPoint] = json.loads((folder / "result.json").read_text())["depth_front"]
    return front


def without_times(front: list[DepthPoint]) -> list[dict[str, Any]]:
    return [{k: v for k, v in point.items() if k != "seconds_per_token"} for point in front]


@pytest.fixture(scope="module")
def whole(world: World, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run with a depth front."""
    folder = tmp_path_factory.mktemp("depth") / "run"
    train_here(tiny(folder, evaluation=DEPTHS), world)
    return folder


def test_the_projection_to_a_teachers_width_is_no_part_of_any_depth() -> None:
    def parameters(teacher_width: int | None) -> list[int]:
        config = ModelConfig(layers=2, d_model=16, heads=2, d_ff=32)
        model = LanguageModel(config, 30, 8, teacher_width=teacher_width)
        model.initialize(seed=0)
        evaluation = EvaluationConfig(depths=(1,))
        front = depth_front(model, evaluation, 5.0, lambda keep: 6.0, lambda keep: 6.0, rows=1)
        return [point["parameters"] for point in front]

    assert parameters(24) == parameters(None)


def test_a_run_ends_with_its_front_in_metrics_and_result(whole: Path) -> None:
    first, *_, last = measured(whole)
    front = front_of(whole)
    assert [(p["depth"], p["search"]) for p in front] == [
        (1, "every_other"), (1, "greedy"), (2, "every_other"), (2, "greedy"), (3, "whole")
    ]  # fmt: skip
    assert [len(p["layers"]) for p in front] == [p["depth"] for p in front]
    assert front[-1]["valid_ppl"] == last["valid_ppl"] == last["valid_ppl_depth_3"]
    block = 4 * 16 * 16 + 2 * 16 * 32
    assert [front[-1]["parameters"] - p["parameters"] for p in front] == [
        2 * block, 2 * block, block, block, 0
    ]  # fmt: skip
    assert last["parameters_depth_2"] == front[2]["parameters"]
    assert last["depth_front_hypervolume"] == hypervolume(front, DepthReference(depth=4, ppl=60.0))
    assert all(p["seconds_per_token"] > 0 for p in front)
    assert not [name for name in first if "depth" in name], "it is taken at the end alone"


def test_a_points_perplexity_is_that_of_the_whole_split_and_greedy_is_no_worse(
    whole: Path, world: World
) -> None:
    run = Run(config := load(whole / "config.yaml"), world)
    blocks = EvalBlocks(load_splits(config.data).tokens("valid"), 8)
    run._model.eval()
    for found in front_of(whole):
        keep = mask_of(found["layers"], 3)
        every = (map(torch.from_numpy, batch) for batch in blocks.batches(0, 1, 1))
        nats = sum(run._model.total_nll(*batch, keep).item() for batch in every)
        assert math.exp(nats / blocks.targets) == pytest.approx(found["valid_ppl"], rel=1e-6)
    run.close()
    by_search = {(p["depth"], p["search"]): p["valid_ppl"] for p in front_of(whole)}
    # Valid is shorter here than what the search looks at, so its first choice is the best there is.
    assert by_search[2, "greedy"] <= by_search[2, "every_other"]


def test_a_run_killed_while_it_measures_the_front_measures_the_same_one_again(
    whole: Path, tiny: Tiny, tmp_path: Path
) -> None:
    document = tiny(tmp_path / "run", evaluation=DEPTHS)
    killed = train(
        document, die_in="trainer.model.transformer.LanguageModel.total_nll", die_call=80
    )
    assert killed == [None]
    reports = train(document)[0]
    assert [report.step for report in reports] == [12]
    assert same(tmp_path / "run", whole)
    assert without_times(front_of(tmp_path / "run")) == without_times(front_of(whole))
    assert without_times(reports[-1].depth_front) == without_times(front_of(whole))


def test_a_run_killed_before_its_result_tells_its_front_from_the_checkpoint(
    whole: Path, tiny: Tiny, tmp_path: Path
) -> None:
    document = tiny(tmp_path / "run", evaluation=DEPTHS)
    assert train(document, die_in="trainer.runs.folder.RunFolder.write_result") == [None]
    (report,) = train(document)[0]
    assert report.kind == "finished"
    assert report.depth_front == front_of(tmp_path / "run")
    assert without_times(report.depth_front) == without_times(front_of(whole))


def test_a_resumed_run_knows_the_front_of_each_earlier_evaluation(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    """Its controller may have been killed before it wrote them."""
    document = tiny(tmp_path / "run", evaluation={**DEPTHS, "depths_at": "each"})
    reports = train_here(document, world)
    run = Run(resolve(document, "test"), world)
    told = run.history()
    run.close()
    assert [report.depth_front for report in told] == [report.depth_front for report in reports]
    assert len({report.depth_front[0]["valid_ppl"] for report in told}) == len(reports) > 1


@pytest.mark.slow
def test_two_ranks_measure_together_what_one_measures(tiny: Tiny, tmp_path: Path) -> None:
    changes = {"model": {"dropout": 0.0}, "evaluation": {**DEPTHS, "depths_at": "each"}}
    one = train(tiny(tmp_path / "one", **changes))[0]
    first, second = train(tiny(tmp_path / "two", **changes), ranks=2)
    assert first == second
    for alone, together in zip(one, first, strict=True):
        assert len(alone.depth_front) == 5, "at each evaluation"
        for a, b in zip(alone.depth_front, together.depth_front, strict=True):
            assert a["layers"] == b["layers"]
            assert a["valid_ppl"] == pytest.approx(b["valid_ppl"], rel=1e-4)


def test_the_front_leaves_no_trace_in_the_training(
    whole: Path, uninterrupted: Callable[[int], Path]
) -> None:
    plain = measured(uninterrupted(1))
    assert [line["valid_ppl"] for line in measured(whole)] == [line["valid_ppl"] for line in plain]
    assert not [name for line in plain for name in line if "depth" in name or "target" in name]


def test_every_batch_of_the_front_is_a_sign_of_life(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    beats = {}
    for name, evaluation in (("without", {}), ("with", DEPTHS)):
        seen: list[int] = []
        document = tiny(tmp_path / name, steps=1, evaluation=evaluation)
        run = Run(resolve(document, "test"), world, None, lambda seen=seen: seen.append(1))
        run.advance()
        run.close()
        beats[name] = len(seen)
    # Beside the whole model: three and two candidates of the greedy search, and up to four points.
    assert beats["with"] >= (1 + 3 + 2 + 2) * beats["without"]


def test_steps_and_seconds_to_a_target_are_those_of_when_it_was_first_reached(whole: Path) -> None:
    first, reached, last = (
        json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()
    )
    assert first["valid_ppl"] > 47.0 > reached["valid_ppl"], "the target was well chosen"
    assert "steps_to_target" not in first
    for line in (reached, last, json.loads((whole / "result.json").read_text())):
        assert line["steps_to_target"] == reached["step"] == 8
        assert line["seconds_to_target"] == reached["train_seconds"]
    assert to_target([{"valid_ppl": 9.0}], 8.0) == to_target([], 8.0) == {}


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"depths": [2, 4]}, "evaluation.depths: 4 is more than the model's 3 layers"),
        ({"depths": [0]}, "evaluation.depths.0: must be greater than or equal to 1, not 0"),
        ({"depths": 2}, "evaluation.depths: must be a valid tuple, not 2"),
        (
            {"depths": [2], "reference": {"depth": 3, "ppl": 60.0}},
            "evaluation.reference.depth: 3 leaves out the whole model of 3 layers; use 4 or more",
        ),
        ({"reference": {"depth": 4}}, "evaluation.reference.ppl: is required and was not given"),
        ({"target": 3.0}, "evaluation.target: no such setting; did you mean target_ppl?"),
    ],
)
def test_a_mistake_is_one_line(
    tiny: Tiny, tmp_path: Path, evaluation: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve(tiny(tmp_path, evaluation=evaluation), "x.yaml")
    assert str(refused.value) == f"x.yaml: {message}"
