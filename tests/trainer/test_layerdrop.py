"""Drop policies: their closed forms, and masks that are the same on every rank."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.settings import ConfigError
from trainer.config.train import check_path, check_setting, override, resolve
from trainer.model.layerdrop import DropPolicy, make_policy

probabilities = st.floats(0.0, 0.99)
steps = st.integers(0, 100_000)
fractions = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5, unique=True).map(sorted)

# A policy of each kind that drops something at step 300 of 400.
POLICIES: dict[str, dict[str, object]] = {
    "static": {"p_init": 0.3},
    "linear": {"p_init": 0.5},
    "cosine": {"p_init": 0.5},
    "piecewise": {"points": [[0.5, 0.0], [1.0, 0.6]]},
    "pld": {"theta_bar": 0.4},
    "sbld": {"p_init": 0.3},
}


def policy(
    name: str,
    *,
    layers: int = 4,
    run_steps: int = 400,
    sensitivity: Sequence[float] | None = None,
    **drop: object,
) -> DropPolicy:
    document = {
        "seed": 7,
        "steps": run_steps,
        "model": {"layers": layers},
        "layerdrop": {"policy": name, **drop},
    }
    found = range(layers, 0, -1) if sensitivity is None else sensitivity
    return make_policy(resolve(document, "test"), found)


@given(p=probabilities, step=steps)
def test_static_drop_has_one_probability(p: float, step: int) -> None:
    assert policy("static", p_init=p).drop_probability(1, step) == p


@given(p_init=probabilities, p_final=probabilities, length=st.integers(1, 1000), step=steps)
def test_linear_drop_falls_along_a_line_and_stays(
    p_init: float, p_final: float, length: int, step: int
) -> None:
    linear = policy("linear", p_init=p_init, p_final=p_final, decay_steps=length)
    expected = p_init + (p_final - p_init) * step / length if step < length else p_final
    assert linear.drop_probability(1, step) == pytest.approx(expected, abs=1e-12)


@given(p_init=probabilities, p_final=probabilities, length=st.integers(1, 1000), step=steps)
def test_cosine_drop_falls_along_half_a_cosine_and_stays(
    p_init: float, p_final: float, length: int, step: int
) -> None:
    cosine = policy("cosine", p_init=p_init, p_final=p_final, decay_steps=length)
    angle = math.pi * min(step, length) / length
    expected = p_final + (p_init - p_final) * (1 + math.cos(angle)) / 2
    assert cosine.drop_probability(1, step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_annealing_takes_its_fraction_of_the_run(name: str) -> None:
    half = policy(name, run_steps=1000, p_init=0.4, p_final=0.2, decay_fraction=0.5)
    assert half.drop_probability(1, 0) == pytest.approx(0.4)
    assert half.drop_probability(1, 250) == pytest.approx(0.3)
    assert half.drop_probability(1, 500) == half.drop_probability(1, 999) == pytest.approx(0.2)


@given(knots=fractions, data=st.data(), step=st.integers(0, 1000))
def test_piecewise_drop_follows_straight_lines_through_its_points(
    knots: list[float], data: st.DataObject, step: int
) -> None:
    points = [(knot, data.draw(probabilities)) for knot in knots]
    now = step / 1000
    if now <= points[0][0]:
        expected = points[0][1]
    elif now >= points[-1][0]:
        expected = points[-1][1]
    else:
        (start, p), (end, q) = next(
            pair for pair in itertools.pairwise(points) if pair[0][0] <= now < pair[1][0]
        )
        expected = p + (q - p) * ((now - start) / (end - start))
    piecewise = policy("piecewise", run_steps=1000, points=points)
    assert piecewise.drop_probability(2, step) == pytest.approx(expected, abs=1e-9)


@given(
    layers=st.integers(1, 24),
    theta_bar=st.floats(0.01, 1.0),
    gamma=st.none() | st.floats(1e-6, 1.0),
    step=st.integers(0, 5000),
)
def test_progressive_drop_is_that_of_the_paper(
    layers: int, theta_bar: float, gamma: float | None, step: int
) -> None:
    pld = policy("pld", layers=layers, run_steps=5000, theta_bar=theta_bar, gamma=gamma)
    theta = (1 - theta_bar) * math.exp(-(gamma or 100 / 5000) * step) + theta_bar
    for layer in range(1, layers + 1):
        keep = 1 - layer / layers * (1 - theta)
        assert pld.drop_probability(layer, step) == pytest.approx(1 - keep, abs=1e-9)
        assert pld.residual_scale(layer, step) == pytest.approx(1 / keep)
    scales = {pld.residual_scale(layer, step) for layer in range(1, layers + 1)}
    assert set(pld.mask(step, 0)) <= {0.0} | scales


def test_a_kept_layer_is_scaled_by_what_it_is_kept_with_after_its_cap() -> None:
    pld = policy("pld", theta_bar=0.2, start_layer=2, caps={4: 0.5})
    assert [pld.residual_scale(layer, 399) for layer in range(1, 5)] == pytest.approx(
        [1.0, 1 / 0.6, 1 / 0.4, 2.0]
    )
    assert {mask[3] for mask in (pld.mask(399, micro) for micro in range(50))} == {0.0, 2.0}


@given(
    sensitivity=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12, unique=True),
    p=probabilities,
    start=st.integers(1, 12),
    since=st.integers(0, 1000),
)
def test_sensitivity_based_drop_protects_the_sensitive_and_keeps_the_mean(
    sensitivity: list[float], p: float, start: int, since: int
) -> None:
    layers, start = len(sensitivity), min(start, len(sensitivity))
    sbld = policy(
        "sbld",
        layers=layers,
        run_steps=1000,
        sensitivity=sensitivity,
        p_init=p,
        start_layer=start,
        analysis_start_fraction=0.1,
        analysis_steps=5,
        ramp_fraction=0.2,
    )
    assert {sbld.mean_probability(step) for step in (0, 99, 104)} == {0.0}
    droppable = range(start, layers + 1)
    found = [sbld.drop_probability(layer, 105 + since) for layer in droppable]
    risen = min(since / 200, 1.0)
    assert np.mean(found) == pytest.approx(p * risen)
    assert max(found) < 1.0
    by_sensitivity = [
        drop for _, drop in sorted(zip(sensitivity[start - 1 :], found, strict=True), reverse=True)
    ]
    assert by_sensitivity == sorted(found)
    if p <= 1 / 3 and len(found) > 1:
        assert by_sensitivity[0] == pytest.approx(0.0, abs=1e-9)
        assert by_sensitivity[-1] == pytest.approx(2 * p * risen)


@pytest.mark.parametrize("name", POLICIES)
@given(step=st.integers(0, 400), caps=st.dictionaries(st.integers(1, 4), probabilities))
def test_no_policy_drops_a_layer_more_often_than_its_cap(
    name: str, step: int, caps: dict[int, float]
) -> None:
    free, capped = (policy(name, caps=them, **POLICIES[name]) for them in ({}, caps))
    for layer in range(1, 5):
        expected = min(free.drop_probability(layer, step), caps.get(layer, 1.0))
        if name == "sbld" and 0.0 in caps.values():  # the others share what it does not take
            assert capped.drop_probability(layer, step) <= caps.get(layer, 1.0)
        else:
            assert capped.drop_probability(layer, step) == expected


def test_layers_before_the_start_layer_are_never_skipped() -> None:
    late = policy("static", layers=6, p_init=0.9, start_layer=3)
    masks = [late.mask(step, 0) for step in range(200)]
    assert all(mask[0] and mask[1] for mask in masks)
    assert [late.drop_probability(layer, 0) for layer in range(1, 7)] == [0, 0, 0.9, 0.9, 0.9, 0.9]
    assert late.mean_probability(0) == pytest.approx(0.9 * 4 / 6)


def test_no_drop_keeps_every_layer() -> None:
    assert policy("none", layers=3, p_init=0.9).mask(5, 1) == (True, True, True)


@given(step=steps, micro_step=st.integers(0, 64))
def test_at_least_one_layer_is_kept(step: int, micro_step: int) -> None:
    assert any(policy("static", layers=2, p_init=0.99).mask(step, micro_step))


@pytest.mark.parametrize(("layers", "p"), [(1, 0.5), (2, 0.5), (4, 0.2), (12, 0.05)])
def test_layers_are_skipped_as_often_as_the_policy_says(layers: int, p: float) -> None:
    draws = 10_000
    static = policy("static", layers=layers, p_init=p)
    kept = np.array([static.mask(step, 0) for step in range(draws)])
    # Where all are drawn to be skipped, one of them is kept after all, each as likely.
    expected = p - p**layers / layers
    sigma = math.sqrt(max(expected * (1 - expected), 1e-12) / draws)
    assert np.all(np.abs((1 - kept.mean(axis=0)) - expected) <= 5 * sigma)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_skips_as_often_as_it_says(name: str) -> None:
    draws, step = 10_000, 300
    drawn = policy(name, caps={3: 0.2}, **POLICIES[name])
    masks = np.array([drawn.mask(step, micro) for micro in range(draws)])
    p = np.array([drawn.drop_probability(layer, step) for layer in range(1, 5)])
    expected = p - p.prod() / 4  # as above
    sigma = np.sqrt(np.maximum(expected * (1 - expected), 1e-12) / draws)
    assert expected.max() > 0.1
    assert np.all(np.abs((masks == 0).mean(axis=0) - expected) <= 5 * sigma)


def test_layers_are_skipped_independently_of_each_other_and_of_the_micro_step() -> None:
    static = policy("static", layers=3, p_init=0.5, start_layer=2)
    both = ((*static.mask(step, 0)[1:], *static.mask(step, 1)[1:]) for step in range(4000))
    masks = np.array(list(both))
    correlation = np.corrcoef(masks.T)[~np.eye(4, dtype=bool)]
    assert np.all(np.abs(correlation) < 5 / math.sqrt(4000))


def test_a_mask_depends_on_seed_and_position_alone() -> None:
    first = policy("static", layers=12, p_init=0.5)
    masks = [first.mask(step, 3) for step in range(20)]
    torch.manual_seed(1)
    np.random.seed(1)
    again = policy("static", layers=12, p_init=0.5)
    assert [again.mask(step, 3) for step in reversed(range(20))] == masks[::-1]
    other_seed = make_policy(
        resolve({"model": {"layers": 12}, "layerdrop": {"policy": "static", "p_init": 0.5}}, "test")
    )
    assert [other_seed.mask(step, 3) for step in range(20)] != masks


def test_masks_never_change_from_version_to_version() -> None:
    # A resumed run must draw what the interrupted one would have, under any NumPy.
    masks = [policy("static", p_init=0.5).mask(step, 0) for step in range(3)]
    assert masks == [
        (False, False, False, True),
        (True, False, False, True),
        (True, True, False, True),
    ]


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ({"caps": {5: 0.1}}, "layerdrop.caps: 5 is past the last of 4 layers"),
        ({"caps": {0: 0.1}}, "layerdrop.caps.0: must be greater than or equal to 1"),
        ({"caps": {1: 1.0}}, "layerdrop.caps.1: must be less than 1, not 1.0"),
        ({"points": []}, r"layerdrop.points: must be \[fraction"),
        ({"points": [[0.5, 0.1], [0.5, 0.2]]}, r"layerdrop.points: .* each fraction larger"),
        ({"points": [[0.0, 0.1], [1.5, 0.2]]}, r"layerdrop.points.1.0: must be less .* not 1.5"),
        ({"points": [[0.0, 1.0]]}, "layerdrop.points.0.1: must be less than 1, not 1.0"),
        ({"theta_bar": 0.0}, "layerdrop.theta_bar: must be greater than 0"),
        (
            {"policy": "sbld", "analysis_start_fraction": 0.9, "analysis_steps": 50},
            "layerdrop.analysis_steps: 50 steps from step 360 on end after the run's 400",
        ),
    ],
)
def test_a_policy_that_cannot_be_is_refused_in_one_line(
    drop: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        resolve({"layerdrop": drop}, "test")
    assert "\n" not in str(refusal.value)


def test_one_layer_s_cap_can_be_set_and_searched_by_its_path() -> None:
    document = {"layerdrop": {"caps": {2: 0.1, 4: 0.2}}}
    override(document, ["layerdrop.caps.4=0.3"])
    assert resolve(document, "test").layerdrop.caps == {2: 0.1, 4: 0.3}
    check_path("layerdrop.caps.4", "space")
    check_setting("layerdrop.caps.4", 0.5, "space")
    for path, value in (("layerdrop.caps.4", 1.5), ("layerdrop.caps.last", 0.5)):
        with pytest.raises(ConfigError, match="space: .* does not fit layerdrop.caps"):
            check_setting(path, value, "space")
