"""The depth front: what one trained model is worth at several depths, without retraining.

It finds the layers that each sub-model keeps, and its perplexity, size and speed. The caller says
how a perplexity is measured. Nothing here trains, writes or draws at random.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from trainer.config.sections import DepthReference, EvaluationConfig
from trainer.model.layerdrop import Mask
from trainer.model.transformer import LanguageModel
from trainer.runs.checkpoint import DepthPoint

_TIMINGS = 5  # forward passes of each depth, whose median is its time

Layers = tuple[int, ...]  # the layers kept, 1-based, in order
Perplexity = Callable[[Mask], float]


def every_other(layers: int, depth: int) -> Layers:
    """The `depth` of `layers` layers that "every other" pruning keeps (Fan et al. 2019).

    The first and the last layer stay, because they matter most. The dropped layers are spread
    evenly, so that neighbours are dropped only if they must. A depth of 1 keeps the first layer.
    """
    gaps = depth - 1
    # i * (layers - 1) / gaps, rounded half up, in integers.
    return (1, *(1 + (2 * i * (layers - 1) + gaps) // (2 * gaps) for i in range(1, depth)))


def greedy(layers: int, shallowest: int, perplexity: Perplexity) -> Iterator[Layers]:
    """Yield sub-models with one layer fewer each time, down to `shallowest` layers.

    Each time it drops the layer whose removal gives the lowest `perplexity`, the first of equals.
    """
    kept = tuple(range(1, layers + 1))
    while len(kept) > shallowest:
        fewer = [tuple(n for n in kept if n != gone) for gone in kept]
        kept = min(fewer, key=lambda candidate: perplexity(mask_of(candidate, layers)))
        yield kept


def mask_of(kept: Sequence[int], layers: int) -> Mask:
    """For each of `layers` layers, whether it is among the `kept` (1-based)."""
    return tuple(n in kept for n in range(1, layers + 1))


def depth_front(
    model: LanguageModel,
    config: EvaluationConfig,
    whole_ppl: float,
    perplexity: Perplexity,
    search_perplexity: Perplexity,
    rows: int,
) -> list[DepthPoint]:
    """Measure `model` at the depths of `config`, and whole, where its perplexity is `whole_ppl`.

    `perplexity` of a mask covers all of valid, `search_perplexity` only as much as a search can
    afford. Times are for `rows` sequences at once. All ranks call this together.
    """
    layers = len(model.blocks)
    whole = tuple(range(1, layers + 1))
    chosen = [("whole", whole), *_chosen(config, layers, search_perplexity)]
    measured = {whole: whole_ppl}
    for _, kept in chosen:
        if kept not in measured:
            measured[kept] = perplexity(mask_of(kept, layers))
    seconds = _seconds_per_token(model, {len(kept): kept for _, kept in chosen}, rows)
    block = sum(p.numel() for p in model.blocks[0].parameters())
    all_parameters = model.own_parameters()
    points = [
        DepthPoint(
            depth=len(kept),
            search=search,
            layers=list(kept),
            valid_ppl=measured[kept],
            parameters=all_parameters - (layers - len(kept)) * block,
            seconds_per_token=seconds[len(kept)],
        )
        for search, kept in chosen
    ]
    return sorted(points, key=lambda point: (point["depth"], point["search"]))


def front_metrics(
    front: Sequence[DepthPoint], reference: DepthReference | None
) -> dict[str, float]:
    """The front as flat metrics by depth; a depth has the better perplexity of the searches."""
    metrics: dict[str, float] = {}
    for point in front:
        depth = f"depth_{point['depth']}"
        best = min(point["valid_ppl"], metrics.get(f"valid_ppl_{depth}", math.inf))
        metrics[f"valid_ppl_{depth}"] = best
        metrics[f"parameters_{depth}"] = point["parameters"]
        metrics[f"seconds_per_token_{depth}"] = point["seconds_per_token"]
    if front and reference is not None:
        metrics["depth_front_hypervolume"] = hypervolume(front, reference)
    return metrics


def hypervolume(front: Sequence[DepthPoint], reference: DepthReference) -> float:
    """The area, in layers x nats per token, that `front` dominates within `reference`.

    Its axes are depth and log perplexity. Depths are whole numbers: each below the reference's adds
    the nats by which the best model of at most that depth beats the reference.
    """

    def best_nats(depth: int) -> float:
        within = (math.log(p["valid_ppl"]) for p in front if p["depth"] <= depth)
        return min(within, default=math.inf)

    worst = math.log(reference.ppl)
    return sum(max(0.0, worst - best_nats(depth)) for depth in range(1, reference.depth))


def _chosen(
    config: EvaluationConfig, layers: int, search_perplexity: Perplexity
) -> Iterator[tuple[str, Layers]]:
    depths = sorted(set(config.depths) - {layers})
    if config.depth_search != "greedy":
        yield from (("every_other", every_other(layers, depth)) for depth in depths)
    if config.depth_search != "every_other":
        found = greedy(layers, min(depths, default=layers), search_perplexity)
        yield from (("greedy", kept) for kept in found if len(kept) in depths)


def _seconds_per_token(
    model: LanguageModel, layers_by_depth: dict[int, Layers], rows: int
) -> dict[int, float]:
    # The depths take turns, so that other work of the machine slows all of them alike. Any tokens
    # take the same time.
    masks = {d: mask_of(kept, len(model.blocks)) for d, kept in layers_by_depth.items()}
    shape = rows, len(model.positions)
    tokens = torch.zeros(shape, dtype=torch.int64, device=model.positions.device)
    seconds: dict[int, list[float]] = {depth: [] for depth in masks}
    model.eval()
    for _ in range(_TIMINGS):
        for depth, mask in masks.items():
            started = time.perf_counter()
            model.total_nll(tokens, tokens, mask).item()  # .item() waits for a GPU
            seconds[depth].append(time.perf_counter() - started)
    model.train()
    return {d: statistics.median(taken) / tokens.numel() for d, taken in seconds.items()}
