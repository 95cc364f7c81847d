"""Optuna's own conformance suite for samplers, on the Ax sampler.

Left out, and why:
- `SingleOnlySamplerTestCase`: for samplers that refuse several objectives; Ax takes them, and
  `MultiObjectiveSamplerTestCase` is run.
- Nothing else. `startup_trials` is 8 and Ax's model takes over in the tests that come that far:
  the two last trials of each test of ten, and most of a dynamic range's. The cases of
  `RelativeSamplerTestCase` tell one trial only and then propose hundreds of times, so that they
  see the quasi-random start; what they ask of a proposal is asked of the model in
  test_ax_sampler.py, once for all kinds of parameters together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from hpo.search.samplers.ax import AxSampler

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("coarse_ax")
class TestAxSampler(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return partial(AxSampler, seed=0, startup_trials=8)
