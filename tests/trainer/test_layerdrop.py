"""Drop policies: their closed forms, and masks that are the same on every rank."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import resolve
from trainer.layerdrop import DropPolicy, make_policy

probabilities = st.floats(0.0, 0.99)
steps = st.integers(0, 100_000)


def policy(name: str, *, layers: int = 4, run_steps: int = 400, **drop: object) -> DropPolicy:
    document = {
        "seed": 7,
        "steps": run_steps,
        "model": {"layers": layers},
        "layerdrop": {"policy": name, **drop},
    }
    return make_policy(resolve(document, "test"))


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
