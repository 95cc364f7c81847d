"""The odd ones of the first 300 schedules."""

from __future__ import annotations

import pytest

from tests.simulation.schedules import player

pytestmark = pytest.mark.slow


def test_no_schedule_violates_an_invariant() -> None:
    with player() as playing:
        for number in range(1, 300, 2):
            violation = playing.play(str(number)).violation
            assert violation is None, f"python -m tests.simulation --seed {number}: {violation}"
